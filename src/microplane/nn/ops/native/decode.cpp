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
    std::vector<float> space_of_scores;
    int64_t stride = 0;

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
        share(s.rows * s.kv, 1, t, n, first, end);
        for (int64_t unit = first; unit < end; unit++) attend(b, unit / s.kv, unit % s.kv);
        wait();
        add(b.o, c.mixed.data(), b.after);
        if (b.cross_q.kind) {
            multiply(b.cross_q, norms(b.cross_before), c.q.data());
            wait();
            share(s.rows * s.heads, 1, t, n, first, end);
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

    // A query or key, normed and turned; returns `to`, where it is put.
    const T *turn(const Block<T> &b, const T *from, const float *weight, int64_t row, T *to) {
        std::memcpy(to, from, sizeof(T) * s.head);
        if (weight && !s.whole) norm(to, weight, to, s.head, f.eps, s.around_one);
        if (!b.cosines) return to;
        const int64_t half = s.head / 2;
        for (int64_t i = 0; i < half; i += LANES) {
            const int64_t count = std::min(LANES, half - i);
            const lanes one = load(to + i, count, 0), two = load(to + half + i, count, 0);
            const lanes c = load(b.cosines + row * half + i, count, 0), d = load(b.sines + row * half + i, count, 0);
            store(to + i, one * c - two * d, count);
            store(to + half + i, two * c + one * d, count);
        }
        return to;
    }

    // The new token's key and value are put behind the row's, and its queries, of all heads that share them, attend to
    // all, or to the last `window`.
    void attend(const Block<T> &b, int64_t row, int64_t group) {
        Buffers<T> &c = common();
        const int64_t held = lengths[row], at = row * s.kv + group, heads = s.heads / s.kv;
        turned_k.resize(s.head);
        turn(b, &c.k[at * s.head], b.k_norm, row, turned_k.data());
        for (int64_t head = 0; head < heads; head += ROWS) {
            const int64_t first = row * s.heads + group * heads + head;
            switch (heads - head) {
                case 1: attend_together<1>(b, row, group, first); break;
                case 2: attend_together<2>(b, row, group, first); break;
                case 3: attend_together<3>(b, row, group, first); break;
                default: attend_together<ROWS>(b, row, group, first);
            }
        }
        std::memcpy(b.keys + (at * s.capacity + held) * s.head, turned_k.data(), sizeof(T) * s.head);
        std::memcpy(b.values + (at * s.capacity + held) * s.head, &c.v[at * s.head], sizeof(T) * s.head);
    }

    // R heads of a row from number `unit` of all rows' on.
    template <int R>
    void attend_together(const Block<T> &b, int64_t row, int64_t group, int64_t unit) {
        Buffers<T> &c = common();
        const int64_t held = lengths[row], at = row * s.kv + group, head = unit % s.heads;
        const T *keys = b.keys + at * s.capacity * s.head, *values = b.values + at * s.capacity * s.head;
        const int64_t first = b.window ? std::max<int64_t>(0, held + 1 - b.window) : 0, count = held + 1 - first;
        const T *queries[R], *last[1] = {turned_k.data()};
        turned_q.resize(R * s.head);
        for (int r = 0; r < R; r++) queries[r] = turn(b, &c.q[(unit + r) * s.head], b.q_norm, row, turned_q.data() + r * s.head);
        float *scores = room(R, count), found[1][ROWS];
        score<R>(queries, keys, first, held, scores);
        dots<1, R>(last, queries, s.head, found);
        for (int r = 0; r < R; r++) {
            float *own = scores + r * stride;
            own[count - 1] = found[0][r];
            for (int64_t j = 0; j < count; j++) {
                own[j] *= f.scale;
                if (f.softcap) own[j] = f.softcap * std::tanh(own[j] / f.softcap);
                if (b.bias) own[j] += b.bias[(head + r) * s.distances + count - 1 - j];
            }
        }
        mix<R>(values + first * s.head, &c.v[at * s.head], count, scores, &c.mixed[unit * s.head]);
    }

    void attend_source(const Block<T> &b, int64_t row, int64_t head) {
        Buffers<T> &c = common();
        const int64_t at = (row * s.heads + head) * s.source_capacity * s.head, count = source_lengths[row];
        const T *query[1] = {&c.q[(row * s.heads + head) * s.head]}, *values = b.memory_values + at;
        float *scores = room(1, count);
        score<1>(query, b.memory_keys + at, 0, count, scores);
        for (int64_t j = 0; j < count; j++) scores[j] *= f.scale;
        mix<1>(values, values + (count - 1) * s.head, count, scores, &c.mixed[(row * s.heads + head) * s.head]);
    }

    // Of `rows` rows of so many scores, with `stride` from one to the next.
    float *room(int64_t rows, int64_t count) {
        stride = (count + LANES - 1) / LANES * LANES;
        space_of_scores.resize(rows * stride);
        return space_of_scores.data();
    }

    template <int R>
    void score(const T *const *queries, const T *keys, int64_t first, int64_t end, float *to) {
        for (int64_t j = first; j < end; j += OUTPUTS) {
            const T *some[OUTPUTS];
            for (int64_t i = 0; i < OUTPUTS; i++) some[i] = keys + std::min(j + i, end - 1) * s.head;
            float found[OUTPUTS][ROWS];
            dots<OUTPUTS, R>(some, queries, s.head, found);
            for (int64_t i = 0; i < OUTPUTS && j + i < end; i++)
                for (int r = 0; r < R; r++) to[r * stride + j + i - first] = found[i][r];
        }
    }

    // softmax(scores) of R rows over `count` values, the last of which stands elsewhere: R rows of `to`.
    template <int R>
    void mix(const T *values, const T *last, int64_t count, float *scores, T *to) {
        float inverse[R];
        for (int r = 0; r < R; r++) inverse[r] = shares(scores + r * stride, count);
        int64_t i = 0;
        for (; i + 4 * LANES <= s.head; i += 4 * LANES) mixed<R, 4>(values + i, last + i, count, scores, inverse, to + i);
        for (; i < s.head; i += LANES) mixed<R, 1>(values + i, last + i, count, scores, inverse, to + i);
    }

    // exp(scores - the largest), in their place; returns 1 / their sum.
    float shares(float *scores, int64_t count) {
        lanes most = all(-INFINITY), total = all(0.0f);
        for (int64_t j = count; j < stride; j++) scores[j] = -INFINITY;
        for (int64_t j = 0; j < count; j += LANES) most = larger(most, load(scores + j));
        const float top = largest(most);
        for (int64_t j = 0; j < count; j += LANES) {
            const lanes y = exponential(load(scores + j) - top);
            store(scores + j, y);
            total += y;
        }
        return 1 / sum(total);
    }

    template <int R, int V>
    void mixed(const T *values, const T *last, int64_t count, const float *scores, const float *inverse, T *to) {
        lanes kept[R][V];
        const auto add = [&](const T *from, int64_t j, bool begin) {
            lanes value[V];
            UNROLLED
            for (int v = 0; v < V; v++) value[v] = load(from + v * LANES);
            UNROLLED
            for (int r = 0; r < R; r++)
                UNROLLED
                for (int v = 0; v < V; v++) {
                    const lanes part = value[v] * scores[r * stride + j];
                    kept[r][v] = begin ? part : kept[r][v] + part;
                }
        };
        add(last, count - 1, true);
        for (int64_t j = 0; j + 1 < count; j++) add(values + j * s.head, j, false);
        UNROLLED
        for (int r = 0; r < R; r++)
            UNROLLED
            for (int v = 0; v < V; v++) store(to + r * s.head + v * LANES, kept[r][v] * inverse[r]);
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
