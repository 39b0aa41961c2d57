// All blocks of a decoder for one new token a row, in one parallel region: norms, queries, keys and values with rotary
// positions, the cache, attention, for an encoder-decoder attention to the source, and the feed-forward layer. What is
// rounded on the way is what the blocks of models/decoder.py and models/t5.py round, which are the plain reference.

#include <omp.h>

#include "products.h"

namespace {

// One block. Words that are 0 stand for what it has not. nn/ops/decode_step.py fills it.
template <typename T>
struct Block {
    Matrix q, k, v, o, cross_q, cross_o, gate, up, down;
    const float *before, *after, *cross_before, *mlp_before, *mlp_after, *q_norm, *k_norm;  // weights of norms
    const float *bias;                                                                     // (heads, distances)
    int64_t window;
    const T *cosines, *sines;  // (rows, head / 2)
    T *keys, *values;          // (rows, kv, capacity, head)
    const T *memory_keys, *memory_values;  // (rows, heads, source capacity, head)
};

enum { SILU = 0, GELU = 1, RELU = 2 };

struct Shape {
    int64_t blocks, rows, width, inner, heads, kv, head, capacity, source_capacity, distances, activation, around_one, whole;
};

struct Numbers {
    float eps, scale, multiplier, softcap;
};

template <typename T>
struct Buffers {
    std::vector<T> q, k, v, mixed, inner, out;
};

template <typename T>
void norm(const T *x, const float *weight, T *y, int64_t width, float eps, bool around_one) {
    const float squares = sum_of(width, [=](int64_t i) { return wide(x[i]) * wide(x[i]); });
    const float inverse = 1 / std::sqrt(squares / width + eps);
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t n = std::min(LANES, width - i);
        const lanes normed = load(x + i, n, 0) * inverse;
        store(y + i, (around_one ? normed : rounded(x, normed)) * load(weight + i, n, 0), n);
    }
}

inline lanes activated(int64_t kind, lanes x) {
    if (kind == RELU) return larger(x, all(0.0f));
    const lanes z = kind == GELU ? (x + x * x * x * 0.044715f) * 1.5957691216057308f : x;
    return x / (all(1.0f) + exponential(-z));
}

template <typename T>
class Step {
  public:
    Step(const Shape &shape, const Numbers &numbers, const int64_t *lengths, const int64_t *source_lengths, T *x)
        : s(shape), f(numbers), lengths(lengths), source_lengths(source_lengths), x(x) {
        buffers.q.resize(s.rows * s.heads * s.head), buffers.mixed.resize(s.rows * s.heads * s.head);
        buffers.k.resize(s.rows * s.kv * s.head), buffers.v.resize(s.rows * s.kv * s.head);
        buffers.inner.resize(s.rows * s.inner), buffers.out.resize(s.rows * s.width);
    }

    void run(const Block<T> *blocks, int64_t thread, int64_t threads) {
        t = thread, n = threads;
        normed.resize(s.rows * s.width);
        for (int64_t b = 0; b < s.blocks; b++) block(blocks[b]);
    }

    Step(const Step &other, int) : s(other.s), f(other.f), lengths(other.lengths), source_lengths(other.source_lengths), x(other.x), shared(&other) {}

  private:
    const Shape &s;
    const Numbers &f;
    const int64_t *lengths, *source_lengths;
    T *x;  // (rows, width), what goes through all blocks
    Buffers<T> buffers;
    const Step *shared = nullptr;  // whose buffers all threads write to
    int64_t t = 0, n = 1;
    Space space;
    std::vector<T> normed, turned_q, turned_k;
    std::vector<float> scores;

    Buffers<T> &common() { return const_cast<Step *>(shared)->buffers; }

    void wait() {
#pragma omp barrier
    }

    // All rows by each thread for itself: little, and no wait.
    const T *norms(const float *weight) {
        if (!weight) return x;
        for (int64_t r = 0; r < s.rows; r++) norm(x + r * s.width, weight, normed.data() + r * s.width, s.width, f.eps, s.around_one);
        return normed.data();
    }

    void multiply(const Matrix &m, const T *from, T *to) {
        int64_t first, end;
        share(m.outputs, TILE, t, n, first, end);
        layer(m, from, s.rows, first, end, space, [=, &m](int64_t r, int64_t o, lanes y, int64_t count) { store(to + r * m.outputs + o, y, count); });
    }

    lanes scaled(lanes y) const {
        y = rounded(x, y);
        return f.multiplier == 1.0f ? y : rounded(x, y * f.multiplier);
    }

    // x += the layer's output, normed by `after` if given.
    void add(const Matrix &m, const T *from, const float *after) {
        if (!after) {
            int64_t first, end;
            share(m.outputs, TILE, t, n, first, end);
            layer(m, from, s.rows, first, end, space, [this](int64_t r, int64_t o, lanes y, int64_t count) {
                T *to = x + r * s.width + o;
                store(to, load(to, count, 0) + scaled(y), count);
            });
            return wait();
        }
        multiply(m, from, common().out.data());
        wait();
        int64_t first, end;
        share(s.rows, 1, t, n, first, end);
        for (int64_t r = first; r < end; r++) {
            norm(common().out.data() + r * s.width, after, normed.data(), s.width, f.eps, s.around_one);
            for (int64_t i = 0; i < s.width; i += LANES) {
                const int64_t count = std::min(LANES, s.width - i);
                T *to = x + r * s.width + i;
                store(to, load(to, count, 0) + scaled(load(normed.data() + i, count, 0)), count);
            }
        }
        wait();
    }

    void block(const Block<T> &b) {
        Buffers<T> &c = common();
        const T *from = norms(b.before);
        multiply(b.q, from, c.q.data()), multiply(b.k, from, c.k.data()), multiply(b.v, from, c.v.data());
        wait();
        if (b.q_norm && s.whole) {
            int64_t first, end;
            share(s.rows, 1, t, n, first, end);
            const int64_t q = s.heads * s.head, k = s.kv * s.head;
            for (int64_t r = first; r < end; r++) {
                norm(&c.q[r * q], b.q_norm, &c.q[r * q], q, f.eps, s.around_one);
                norm(&c.k[r * k], b.k_norm, &c.k[r * k], k, f.eps, s.around_one);
            }
            wait();
        }
        int64_t first, end;
        share(s.rows * s.heads, 1, t, n, first, end);
        for (int64_t unit = first; unit < end; unit++) attend(b, unit / s.heads, unit % s.heads);
        wait();
        add(b.o, c.mixed.data(), b.after);
        if (b.cross_q.kind) {
            multiply(b.cross_q, norms(b.cross_before), c.q.data());
            wait();
            for (int64_t unit = first; unit < end; unit++) attend_source(b, unit / s.heads, unit % s.heads);
            wait();
            add(b.cross_o, c.mixed.data(), nullptr);
        }
        from = norms(b.mlp_before);
        T *inner = c.inner.data();
        const Matrix &gate = b.gate.kind ? b.gate : b.up;
        share(gate.outputs, TILE, t, n, first, end);
        const int64_t width = s.inner, kind = s.activation;
        layer(gate, from, s.rows, first, end, space, [=](int64_t r, int64_t o, lanes y, int64_t count) {
            store(inner + r * width + o, b.gate.kind ? y : activated(kind, rounded(inner, y)), count);
        });
        if (b.gate.kind)
            layer(b.up, from, s.rows, first, end, space, [=](int64_t r, int64_t o, lanes y, int64_t count) {
                T *to = inner + r * width + o;
                store(to, activated(kind, load(to, count, 0)) * rounded(inner, y), count);
            });
        wait();
        add(b.down, inner, b.mlp_after);
    }

    void turn(const Block<T> &b, const T *from, const float *weight, int64_t row, std::vector<T> &to) {
        to.resize(s.head);
        std::memcpy(to.data(), from, sizeof(T) * s.head);
        if (weight && !s.whole) norm(to.data(), weight, to.data(), s.head, f.eps, s.around_one);
        if (!b.cosines) return;
        const int64_t half = s.head / 2;
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t count = std::min(LANES, half - i);
            const lanes one = load(to.data() + i, count, 0), two = load(to.data() + half + i, count, 0);
            const lanes c = load(b.cosines + row * half + i, count, 0), d = load(b.sines + row * half + i, count, 0);
            store(to.data() + i, one * c - two * d, count);
            store(to.data() + half + i, two * c + one * d, count);
        }
    }

    // The new token's key and value are put behind the row's, and its query attends to all, or to the last `window`.
    void attend(const Block<T> &b, int64_t row, int64_t head) {
        Buffers<T> &c = common();
        const int64_t group = head / (s.heads / s.kv), held = lengths[row], at = row * s.kv + group;
        T *keys = b.keys + at * s.capacity * s.head, *values = b.values + at * s.capacity * s.head;
        const T *value = &c.v[at * s.head];
        turn(b, &c.q[(row * s.heads + head) * s.head], b.q_norm, row, turned_q);
        turn(b, &c.k[at * s.head], b.k_norm, row, turned_k);
        const int64_t first = b.window ? std::max<int64_t>(0, held + 1 - b.window) : 0;
        scores.resize(held + 1 - first + LANES);
        score(turned_q.data(), keys, first, held, scores.data());
        const T *query[1] = {turned_q.data()}, *last[1] = {turned_k.data()};
        float found[1][ROWS];
        dots<1, 1>(last, query, s.head, found);
        scores[held - first] = found[0][0];
        const int64_t count = held + 1 - first;
        for (int64_t j = 0; j < count; j++) {
            scores[j] *= f.scale;
            if (f.softcap) scores[j] = f.softcap * std::tanh(scores[j] / f.softcap);
            if (b.bias) scores[j] += b.bias[head * s.distances + count - 1 - j];
        }
        mix(values + first * s.head, value, count, &c.mixed[(row * s.heads + head) * s.head]);
        if (head % (s.heads / s.kv) == 0) {  // nobody else looks at this cell now
            std::memcpy(keys + held * s.head, turned_k.data(), sizeof(T) * s.head);
            std::memcpy(values + held * s.head, value, sizeof(T) * s.head);
        }
    }

    void attend_source(const Block<T> &b, int64_t row, int64_t head) {
        Buffers<T> &c = common();
        const int64_t at = (row * s.heads + head) * s.source_capacity * s.head, count = source_lengths[row];
        const T *query = &c.q[(row * s.heads + head) * s.head], *values = b.memory_values + at;
        scores.resize(count + LANES);
        score(query, b.memory_keys + at, 0, count, scores.data());
        for (int64_t j = 0; j < count; j++) scores[j] *= f.scale;
        mix(values, values + (count - 1) * s.head, count, &c.mixed[(row * s.heads + head) * s.head]);
    }

    void score(const T *query, const T *keys, int64_t first, int64_t end, float *to) {
        const T *one[1] = {query};
        for (int64_t j = first; j < end; j += OUTPUTS) {
            const T *some[OUTPUTS];
            for (int64_t i = 0; i < OUTPUTS; i++) some[i] = keys + std::min(j + i, end - 1) * s.head;
            float found[OUTPUTS][ROWS];
            dots<OUTPUTS, 1>(some, one, s.head, found);
            for (int64_t i = 0; i < OUTPUTS && j + i < end; i++) to[j + i - first] = found[i][0];
        }
    }

    // softmax(scores) over `count` values, the last of which stands elsewhere.
    void mix(const T *values, const T *last, int64_t count, T *to) {
        lanes most = all(-INFINITY), total = all(0.0f);
        for (int64_t j = count; j < (count + LANES - 1) / LANES * LANES; j++) scores[j] = -INFINITY;
        for (int64_t j = 0; j < count; j += LANES) most = larger(most, load(scores.data() + j));
        const float top = largest(most);
        for (int64_t j = 0; j < count; j += LANES) {
            const lanes y = exponential(load(scores.data() + j) - top);
            store(scores.data() + j, y);
            total += y;
        }
        const float inverse = 1 / sum(total);
        int64_t i = 0;
        for (; i + 4 * LANES <= s.head; i += 4 * LANES) mixed<4>(values + i, last + i, count, inverse, to + i);
        for (; i < s.head; i += LANES) mixed<1>(values + i, last + i, count, inverse, to + i);
    }

    template <int V>
    void mixed(const T *values, const T *last, int64_t count, float inverse, T *to) {
        lanes kept[V];
        for (int v = 0; v < V; v++) kept[v] = load(last + v * LANES) * scores[count - 1];
        for (int64_t j = 0; j + 1 < count; j++)
            for (int v = 0; v < V; v++) kept[v] += load(values + j * s.head + v * LANES) * scores[j];
        for (int v = 0; v < V; v++) store(to + v * LANES, kept[v] * inverse);
    }
};

template <typename T>
void decode_step(const Block<T> *blocks, const Shape *shape, const Numbers *numbers, const int64_t *lengths,
                 const int64_t *source_lengths, T *x, int64_t threads) {
    const Step<T> first(*shape, *numbers, lengths, source_lengths, x);
#pragma omp parallel num_threads(threads)
    {
        Step<T> own(first, 0);
        own.run(blocks, omp_get_thread_num(), omp_get_num_threads());
    }
}

}  // namespace

extern "C" {

int64_t decode_block_words() { return sizeof(Block<float>) / 8; }
void decode_step_bf16(const void *blocks, const void *shape, const void *numbers, const int64_t *lengths,
                      const int64_t *source_lengths, void *x, int64_t threads) {
    decode_step((const Block<bf16> *)blocks, (const Shape *)shape, (const Numbers *)numbers, lengths, source_lengths, (bf16 *)x,
                threads);
}
void decode_step_f32(const void *blocks, const void *shape, const void *numbers, const int64_t *lengths,
                     const int64_t *source_lengths, void *x, int64_t threads) {
    decode_step((const Block<float> *)blocks, (const Shape *)shape, (const Numbers *)numbers, lengths, source_lengths, (float *)x,
                threads);
}
}
