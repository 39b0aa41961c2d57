// softmax(scale q k^T) v of rows of unequal length, each by itself: no rectangle, no mask but the causal one. In
// bfloat16 with float32 sums, for processors that multiply pairs of bfloat16 (AVX-512 BF16). nn/attention.py calls it.
//
// Products are made of tiles of 4 x 64 sums. One factor is read as words of two numbers that stand side by side along
// the summed dimension; the other is packed so that a vector holds such pairs of 16 columns.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"
#include "bf16.h"

#if defined(MASKS) && defined(__AVX512BF16__)

namespace {

typedef std::vector<uint32_t> Words;

int64_t vectors_of(int64_t n) { return (n + LANES - 1) / LANES; }

// C (M rows, N vectors of 16) = A B over K pairs. A's pair k of row m is A[m * am + k * ak]; B's are rows of ldb words.
template <int M, int N>
inline void tile(const uint32_t *A, int64_t am, int64_t ak, const uint32_t *B, int64_t ldb, int64_t K, float *C,
                 int64_t ldc) {
    __m512 sums[M][N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) sums[m][n] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m512bh b[N];
        for (int n = 0; n < N; n++) b[n] = (__m512bh)_mm512_loadu_si512(B + k * ldb + n * LANES);
        for (int m = 0; m < M; m++) {
            const __m512bh a = (__m512bh)_mm512_set1_epi32((int)A[m * am + k * ak]);
            for (int n = 0; n < N; n++) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], a, b[n]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) _mm512_storeu_ps(C + m * ldc + n * LANES, sums[m][n]);
}

template <int M>
inline void strip(const uint32_t *A, int64_t am, int64_t ak, const uint32_t *B, int64_t ldb, int64_t K, float *C,
                  int64_t ldc, int64_t N) {
    int64_t n = 0;
    for (; n + 4 <= N; n += 4) tile<M, 4>(A, am, ak, B + n * LANES, ldb, K, C + n * LANES, ldc);
    if (N - n == 3) tile<M, 3>(A, am, ak, B + n * LANES, ldb, K, C + n * LANES, ldc);
    if (N - n == 2) tile<M, 2>(A, am, ak, B + n * LANES, ldb, K, C + n * LANES, ldc);
    if (N - n == 1) tile<M, 1>(A, am, ak, B + n * LANES, ldb, K, C + n * LANES, ldc);
}

// What of a product a causal mask leaves: row m of the queries has sums with keys up to m alone (COLUMNS), or is a sum
// over these (SUM); row m of the keys is a sum over the queries from m on (REST).
enum Left { WHOLE, COLUMNS, SUM, REST };

void product(const uint32_t *A, int64_t am, int64_t ak, const uint32_t *B, int64_t ldb, int64_t K, float *C,
             int64_t ldc, int64_t M, int64_t N, Left left) {
    auto rows = [&](int64_t m, int64_t count, auto run) {
        const int64_t end = m + count;  // of the keys that these rows see
        const int64_t from = left == REST ? std::min(m / 2, K) : 0, to = left == SUM ? std::min((end + 1) / 2, K) : K;
        run(A + m * am + from * ak, am, ak, B + from * ldb, ldb, to - from, C + m * ldc, ldc,
            left == COLUMNS ? std::min(vectors_of(end), N) : N);
    };
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) rows(m, 4, strip<4>);
    for (; m < M; m++) rows(m, 1, strip<1>);
}

inline uint32_t pair_at(const bf16 *x) {
    uint32_t word;
    std::memcpy(&word, x, 4);
    return word;
}

// x (n, width), rows `step` apart, as pairs along its width: word (d / 2, row), rows of `padded` words, zeros at the end.
void pack_across(const bf16 *x, int64_t step, int64_t n, int64_t width, int64_t padded, Words &to) {
    to.resize(width / 2 * padded);
    for (int64_t d = 0; d < width / 2; d++) {
        uint32_t *row = to.data() + d * padded;
        for (int64_t i = 0; i < n; i++) row[i] = pair_at(x + i * step + 2 * d);
        for (int64_t i = n; i < padded; i++) row[i] = 0;
    }
}

// x (n, width), rows `step` apart, as pairs of rows: word (row / 2, d), a zero beside the last of an odd number.
void pack_along(const bf16 *x, int64_t step, int64_t n, int64_t width, Words &to) {
    to.resize((n + 1) / 2 * width);
    for (int64_t i = 0; i < n; i += 2) {
        const bf16 *first = x + i * step, *second = first + step;
        uint32_t *row = to.data() + i / 2 * width;
        if (i + 1 < n)
            for (int64_t d = 0; d < width; d++) row[d] = first[d].bits | (uint32_t)second[d].bits << 16;
        else
            for (int64_t d = 0; d < width; d++) row[d] = first[d].bits;
    }
}

// What all rows have in common. Places and steps are counted in elements.
struct Shape {
    const int64_t *q_at, *k_at, *q_lengths, *k_lengths;
    int64_t heads, kv_heads, width, q_head, q_step, k_head, k_step, causal;
    float scale;
};

// One row and one head of keys: how many queries S and keys L it has, where its keys begin, and which heads of queries
// look at them.
struct Place {
    int64_t S, L, D, padded, key, first, last;
};

Place at(const Shape &shape, int64_t b, int64_t kv) {
    const int64_t L = shape.k_lengths[b], group = shape.heads / shape.kv_heads;
    return {shape.q_lengths[b],   L,          shape.width, vectors_of(L) * LANES, shape.k_at[b] + kv * shape.k_head,
            kv * group, (kv + 1) * group};
}

// x (n, width) from sums that lie side by side to rows `step` apart.
void store_rows(bf16 *x, int64_t step, const std::vector<float> &sums, int64_t n, int64_t width) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < width; d += LANES) store(x + i * step + d, load(sums.data() + i * width + d));
}

// The space of one thread.
struct Space {
    Words across, along, across_values, other, pairs;
    std::vector<float> z, out, grad_k, grad_v;
    std::vector<bf16> narrow;
};

// Scores (S, padded) in `z` to shares in `narrow` (S, padded), zero where nothing is seen.
void softmax(Space &space, int64_t S, int64_t L, int64_t padded, bool causal, float scale) {
    for (int64_t i = 0; i < S; i++) {
        float *z = space.z.data() + i * padded;
        bf16 *narrow = space.narrow.data() + i * padded;
        const int64_t seen = causal ? i + 1 : L, full = seen / LANES, n = vectors_of(seen);
        lanes most = all(-INFINITY), sums = {};
        for (int64_t v = 0; v < n; v++) {
            const lanes x = (v < full ? load(z + v * LANES) : load(z + v * LANES, seen - v * LANES, -INFINITY)) * scale;
            store(z + v * LANES, x);
            most = larger(most, x);
        }
        most = all(largest(most));
        for (int64_t v = 0; v < n; v++) {
            const lanes y = exponential(load(z + v * LANES) - most);
            store(z + v * LANES, y);
            sums += y;
        }
        const lanes inverse = all(1 / sum(sums));
        for (int64_t v = 0; v < n; v++) store(narrow + v * LANES, load(z + v * LANES) * inverse);
        for (int64_t v = n * LANES; v < padded; v++) narrow[v].bits = 0;
    }
}

// What one head's queries give to each key, in `narrow` (S, padded); its keys are in `across`.
void shares_of(const Shape &shape, const Place &place, const bf16 *q, Space &space) {
    const auto [S, L, D, padded, key, first, last] = place;
    product((const uint32_t *)q, shape.q_step / 2, 1, space.across.data(), padded, D / 2, space.z.data(), padded, S,
            padded / LANES, shape.causal ? COLUMNS : WHOLE);
    softmax(space, S, L, padded, shape.causal, shape.scale);
}

// One row and one head of keys, with all heads of queries that look at it.
void forward(const Shape &shape, int64_t b, int64_t kv, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *y,
             Space &space) {
    const Place place = at(shape, b, kv);
    const auto [S, L, D, padded, key, first, last] = place;
    pack_across(k + key, shape.k_step, L, D, padded, space.across);
    pack_along(v + key, shape.k_step, L, D, space.along);
    space.z.resize(S * padded);
    space.narrow.resize(S * padded);
    space.out.resize(S * D);
    for (int64_t h = first; h < last; h++) {
        const int64_t query = shape.q_at[b] + h * shape.q_head;
        shares_of(shape, place, q + query, space);
        product((const uint32_t *)space.narrow.data(), padded / 2, 1, space.along.data(), D, (L + 1) / 2,
                space.out.data(), D, S, D / LANES, shape.causal ? SUM : WHOLE);
        store_rows(y + query, shape.q_step, space.out, S, D);
    }
}

// The same for the gradients, from shares that are computed once more: kept, they would be most of what a block of long
// rows keeps. `grad` and `grad_q` lie as q does, `grad_k` and `grad_v` as k does.
void backward(const Shape &shape, int64_t b, int64_t kv, const bf16 *grad, const bf16 *q, const bf16 *k, const bf16 *v,
              bf16 *grad_q, bf16 *grad_k, bf16 *grad_v, Space &space) {
    const Place place = at(shape, b, kv);
    const auto [S, L, D, padded, key, first, last] = place;
    pack_across(k + key, shape.k_step, L, D, padded, space.across);
    pack_across(v + key, shape.k_step, L, D, padded, space.across_values);
    pack_along(k + key, shape.k_step, L, D, space.along);
    space.z.resize(S * padded);
    space.narrow.resize(S * padded);
    space.out.resize(std::max(S, L) * D);
    space.grad_k.assign(L * D, 0);
    space.grad_v.assign(L * D, 0);
    auto add = [&, S = S, L = L, D = D, padded = padded](const bf16 *by_query, int64_t query, const bf16 *x,
                                                         std::vector<float> &total) {
        pack_along(by_query, padded, S, padded, space.pairs);  // pairs of queries, for a sum over them
        pack_along(x + query, shape.q_step, S, D, space.other);
        product(space.pairs.data(), 1, padded, space.other.data(), D, (S + 1) / 2, space.out.data(), D, L, D / LANES,
                shape.causal ? REST : WHOLE);
        for (int64_t i = 0; i < L * D; i++) total[i] += space.out[i];
    };
    for (int64_t h = first; h < last; h++) {
        const int64_t query = shape.q_at[b] + h * shape.q_head;
        shares_of(shape, place, q + query, space);
        add(space.narrow.data(), query, grad, space.grad_v);
        product((const uint32_t *)(grad + query), shape.q_step / 2, 1, space.across_values.data(), padded, D / 2,
                space.z.data(), padded, S, padded / LANES, shape.causal ? COLUMNS : WHOLE);
        for (int64_t i = 0; i < S; i++) {  // the gradient of the scores takes the place of the shares
            const float *z = space.z.data() + i * padded;
            bf16 *narrow = space.narrow.data() + i * padded;
            const int64_t seen = shape.causal ? vectors_of(i + 1) * LANES : padded;  // behind it stand zeros
            lanes along = {};
            for (int64_t j = 0; j < seen; j += LANES) along += load(z + j) * load(narrow + j);
            const lanes mean = all(sum(along));
            for (int64_t j = 0; j < seen; j += LANES)
                store(narrow + j, (load(z + j) - mean) * load(narrow + j) * shape.scale);
        }
        add(space.narrow.data(), query, q, space.grad_k);
        product((const uint32_t *)space.narrow.data(), padded / 2, 1, space.along.data(), D, (L + 1) / 2,
                space.out.data(), D, S, D / LANES, shape.causal ? SUM : WHOLE);
        store_rows(grad_q + query, shape.q_step, space.out, S, D);
    }
    store_rows(grad_k + key, shape.k_step, space.grad_k, L, D);
    store_rows(grad_v + key, shape.k_step, space.grad_v, L, D);
}

}  // namespace

extern "C" {

int64_t has_attention() { return 1; }

void attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *y, const int64_t *q_at, const int64_t *k_at,
               const int64_t *q_lengths, const int64_t *k_lengths, int64_t rows, int64_t heads, int64_t kv_heads,
               int64_t width, int64_t q_head, int64_t q_step, int64_t k_head, int64_t k_step, int64_t causal,
               float scale, int64_t threads) {
    const Shape shape = {q_at,  k_at,   q_lengths, k_lengths, heads,  kv_heads, width,
                         q_head, q_step, k_head,    k_step,    causal, scale};
#pragma omp parallel num_threads(threads)
    {
        Space space;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows * kv_heads; i++)
            forward(shape, i / kv_heads, i % kv_heads, q, k, v, y, space);
    }
}

void attention_back(const bf16 *grad, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *grad_q, bf16 *grad_k,
                    bf16 *grad_v, const int64_t *q_at, const int64_t *k_at, const int64_t *q_lengths,
                    const int64_t *k_lengths, int64_t rows, int64_t heads, int64_t kv_heads, int64_t width,
                    int64_t q_head, int64_t q_step, int64_t k_head, int64_t k_step, int64_t causal, float scale,
                    int64_t threads) {
    const Shape shape = {q_at,  k_at,   q_lengths, k_lengths, heads,  kv_heads, width,
                         q_head, q_step, k_head,    k_step,    causal, scale};
#pragma omp parallel num_threads(threads)
    {
        Space space;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows * kv_heads; i++)
            backward(shape, i / kv_heads, i % kv_heads, grad, q, k, v, grad_q, grad_k, grad_v, space);
    }
}
}

#else

extern "C" int64_t has_attention() { return 0; }

#endif
