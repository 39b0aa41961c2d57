// Dropout, norms, gated activations and softmax, each in one pass over memory, forward and backward. What they compute
// stands in nn/dropout.py and nn/pointwise.py. Sums over rows are made in a fixed number of parts, whatever the threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dropout_mask.h"
#include "simd.h"
#include "bf16.h"

namespace {

const int64_t PIECE = 2048;  // elements handled at once
const int64_t PARTS = 16;    // of the rows, for sums over them

// y = added + x * factor, or x * factor where nothing is added.
template <typename T>
void dropout(const T *x, const T *added, T *y, int64_t seed, int64_t steps, int64_t count, int64_t threads) {
    const Keep keep = keeping(seed, steps, count);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < count; start += PIECE) {
        float factors[PIECE];
        const int64_t n = std::min(PIECE, count - start);
        fill_factors(factors, start, n, keep);
        const T *from = x + start;
        T *to = y + start;
        if (added) {
            const T *other = added + start;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) put(to[i], wide(other[i]) + (factors[i] ? wide(from[i]) * factors[i] : 0.0f));
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) put(to[i], factors[i] ? wide(from[i]) * factors[i] : 0.0f);
        }
    }
}

// One part's rows: [first, last).
inline void part_of(int64_t part, int64_t rows, int64_t &first, int64_t &last) {
    first = rows * part / PARTS;
    last = rows * (part + 1) / PARTS;
}

inline void add_parts(const std::vector<float> &parts, float *total, int64_t width) {
    for (int64_t i = 0; i < width; i++) total[i] = 0;
    for (int64_t p = 0; p < PARTS; p++)
        for (int64_t i = 0; i < width; i++) total[i] += parts[p * width + i];
}

template <typename T>
void layer_norm(const T *x, const float *weight, const float *bias, T *y, float *mean, float *inverse, float eps,
                int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T *from = x + r * width;
        T *to = y + r * width;
        const float m = sum_of(width, [=](int64_t i) { return wide(from[i]); }) / width;
        const float squares = sum_of(width, [=](int64_t i) { return (wide(from[i]) - m) * (wide(from[i]) - m); });
        const float v = 1 / std::sqrt(squares / width + eps);
        mean[r] = m;
        inverse[r] = v;
        if (bias) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (wide(from[i]) - m) * v * weight[i] + bias[i]);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (wide(from[i]) - m) * v * weight[i]);
        }
    }
}

// grad_weight and grad_bias (width,) may be missing.
template <typename T>
void layer_norm_back(const T *grad, const T *x, const float *weight, const float *mean, const float *inverse, T *grad_x,
                     float *grad_weight, float *grad_bias, int64_t rows, int64_t width, int64_t threads) {
    std::vector<float> weights(grad_weight ? PARTS * width : 0), biases(grad_bias ? PARTS * width : 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++) {
        int64_t first, last;
        part_of(part, rows, first, last);
        float *w = grad_weight ? weights.data() + part * width : nullptr;
        float *b = grad_bias ? biases.data() + part * width : nullptr;
        for (int64_t r = first; r < last; r++) {
            const T *g = grad + r * width, *from = x + r * width;
            T *to = grad_x + r * width;
            const float m = mean[r], v = inverse[r];
            const float sum = sum_of(width, [=](int64_t i) { return wide(g[i]) * weight[i]; }) / width;
            const float along =
                sum_of(width, [=](int64_t i) { return wide(g[i]) * weight[i] * ((wide(from[i]) - m) * v); }) / width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                put(to[i], (wide(g[i]) * weight[i] - sum - (wide(from[i]) - m) * v * along) * v);
            if (w) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) w[i] += wide(g[i]) * ((wide(from[i]) - m) * v);
            }
            if (b) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) b[i] += wide(g[i]);
            }
        }
    }
    if (grad_weight) add_parts(weights, grad_weight, width);
    if (grad_bias) add_parts(biases, grad_bias, width);
}

template <typename T>
float rounded(float x);
template <>
inline float rounded<float>(float x) {
    return x;
}
template <>
inline float rounded<bf16>(float x) {
    bf16 y;
    put(y, x);
    return wide(y);
}

template <typename T>
void rms_norm(const T *x, const float *weight, T *y, float *inverse, float eps, int64_t rows, int64_t width,
              int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T *from = x + r * width;
        T *to = y + r * width;
        const float squares = sum_of(width, [=](int64_t i) { return wide(from[i]) * wide(from[i]); });
        const float v = 1 / std::sqrt(squares / width + eps);
        inverse[r] = v;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) put(to[i], rounded<T>(wide(from[i]) * v) * weight[i]);
    }
}

template <typename T>
void rms_norm_back(const T *grad, const T *x, const float *weight, const float *inverse, T *grad_x, float *grad_weight,
                   int64_t rows, int64_t width, int64_t threads) {
    std::vector<float> weights(grad_weight ? PARTS * width : 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++) {
        int64_t first, last;
        part_of(part, rows, first, last);
        float *w = grad_weight ? weights.data() + part * width : nullptr;
        for (int64_t r = first; r < last; r++) {
            const T *g = grad + r * width, *from = x + r * width;
            T *to = grad_x + r * width;
            const float v = inverse[r];
            const float along =
                sum_of(width, [=](int64_t i) { return wide(g[i]) * weight[i] * (wide(from[i]) * v); }) / width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                put(to[i], (wide(g[i]) * weight[i] - wide(from[i]) * v * along) * v);
            if (w) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) w[i] += wide(g[i]) * (wide(from[i]) * v);
            }
        }
    }
    if (grad_weight) add_parts(weights, grad_weight, width);
}

// act(x) = x sigmoid(z(x)): SiLU with z = x; GELU in its tanh form with z = 2 sqrt(2 / pi) (x + 0.044715 x^3).
template <bool GELU>
inline lanes inner(lanes x) {
    return GELU ? 1.5957691216057308f * (x + 0.044715f * x * x * x) : x;
}
template <bool GELU>
inline lanes inner_slope(lanes x) {
    return GELU ? 1.5957691216057308f * (1.0f + 0.134145f * x * x) : all(1.0f);
}

template <typename T, bool GELU>
void gate(const T *x, const T *up, T *y, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t n = std::min(LANES, count - i);
        const lanes g = load(x + i, n, 0.0f);
        store(y + i, g / (1.0f + exponential(-inner<GELU>(g))) * load(up + i, n, 0.0f), n);
    }
}

template <typename T, bool GELU>
void gate_back(const T *grad, const T *x, const T *up, T *grad_x, T *grad_up, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t n = std::min(LANES, count - i);
        const lanes g = load(x + i, n, 0.0f), from = load(grad + i, n, 0.0f);
        const lanes share = 1.0f / (1.0f + exponential(-inner<GELU>(g)));
        const lanes slope = share + g * share * (1.0f - share) * inner_slope<GELU>(g);
        store(grad_x + i, from * load(up + i, n, 0.0f) * slope, n);
        store(grad_up + i, from * g * share, n);
    }
}

// How many numbers the vector i of a row of n has.
inline int64_t of_vector(int64_t i, int64_t n) { return std::min(LANES, n - i * LANES); }

// One row of L scores; z has room for its vectors. VECTORS is their number where that is known, so that they stay in
// registers, else 0.
template <int VECTORS, typename T>
inline void softmax_row(const T *scores, const T *added, lanes *z, T *shares, T *dropped, int64_t place, int64_t L,
                        const Keep &keep) {
    lanes own[VECTORS ? VECTORS : 1];
    if (VECTORS) z = own;
    const int64_t n = VECTORS ? VECTORS : (L + LANES - 1) / LANES;
    for (int64_t i = 0; i < n - 1; i++) z[i] = load(scores + i * LANES);
    z[n - 1] = load(scores + (n - 1) * LANES, of_vector(n - 1, L), -INFINITY);
    if (added) {
        for (int64_t i = 0; i < n - 1; i++) z[i] += load(added + i * LANES);
        z[n - 1] += load(added + (n - 1) * LANES, of_vector(n - 1, L), 0.0f);
    }
    lanes most = z[0], sums = {};
    for (int64_t i = 1; i < n; i++) most = larger(most, z[i]);
    most = all(largest(most));
    for (int64_t i = 0; i < n; i++) {
        z[i] = exponential(z[i] - most);
        sums += z[i];
    }
    const lanes inverse = all(1 / sum(sums));
    for (int64_t i = 0; i < n; i++) z[i] *= inverse;
    for (int64_t i = 0; i < n - 1; i++) store(shares + i * LANES, z[i]);
    store(shares + (n - 1) * LANES, z[n - 1], of_vector(n - 1, L));
    if (!dropped) return;
    for (int64_t i = 0; i < n; i++) {
        float factors[LANES];
        fill_factors(factors, place + i * LANES, LANES, keep);
        store(dropped + i * LANES, z[i] * load(factors), of_vector(i, L));
    }
}

// scores (B, H, S, L) + added, whose strides over B, H and S are given in elements (0 where all are alike); dropped is
// the result with dropout, and may be missing.
template <typename T>
void softmax(const T *scores, const T *added, int64_t over_b, int64_t over_h, int64_t over_s, T *shares, T *dropped,
             int64_t seed, int64_t steps, int64_t B, int64_t H, int64_t S, int64_t L, int64_t threads) {
    if (!L) return;  // rows without a cell
    const Keep keep = keeping(seed, steps, B * H * S * L);
    const int64_t vectors = (L + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<lanes> space(vectors);
        lanes *z = space.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < B * H * S; r++) {
            const T *other = added ? added + r / (H * S) * over_b + r / S % H * over_h + r % S * over_s : nullptr;
            T *out = dropped ? dropped + r * L : nullptr;
#define ROW(N) softmax_row<N>(scores + r * L, other, z, shares + r * L, out, r * L, L, keep)
            switch (vectors) {
                case 1: ROW(1); break;
                case 2: ROW(2); break;
                case 3: ROW(3); break;
                case 4: ROW(4); break;
                case 5: ROW(5); break;
                case 6: ROW(6); break;
                case 7: ROW(7); break;
                case 8: ROW(8); break;
                default: ROW(0);
            }
#undef ROW
        }
    }
}

template <typename T>
void softmax_back(const T *grad, const T *shares, T *slope, int64_t drops, int64_t seed, int64_t steps, int64_t rows,
                  int64_t L, int64_t threads) {
    if (!L) return;
    const Keep keep = keeping(seed, steps, rows * L);
    const int64_t n = (L + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<lanes> space(2 * n);
        lanes *g = space.data(), *s = g + n;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            lanes along = {};
            for (int64_t i = 0; i < n; i++) {
                g[i] = load(grad + r * L + i * LANES, of_vector(i, L), 0.0f);
                s[i] = load(shares + r * L + i * LANES, of_vector(i, L), 0.0f);
                if (drops) {
                    float factors[LANES];
                    fill_factors(factors, r * L + i * LANES, LANES, keep);
                    g[i] *= load(factors);
                }
                along += g[i] * s[i];
            }
            const lanes all_along = all(sum(along));
            for (int64_t i = 0; i < n; i++)
                store(slope + r * L + i * LANES, (g[i] - all_along) * s[i], of_vector(i, L));
        }
    }
}

}  // namespace

#define BOTH(T, S)                                                                                                     \
    void dropout_##S(const T *x, const T *added, T *y, int64_t seed, int64_t steps, int64_t count, int64_t threads) {  \
        dropout(x, added, y, seed, steps, count, threads);                                                             \
    }                                                                                                                  \
    void layer_norm_##S(const T *x, const float *weight, const float *bias, T *y, float *mean, float *inverse,         \
                        float eps, int64_t rows, int64_t width, int64_t threads) {                                     \
        layer_norm(x, weight, bias, y, mean, inverse, eps, rows, width, threads);                                      \
    }                                                                                                                  \
    void layer_norm_back_##S(const T *grad, const T *x, const float *weight, const float *mean, const float *inverse,  \
                             T *grad_x, float *grad_weight, float *grad_bias, int64_t rows, int64_t width,             \
                             int64_t threads) {                                                                        \
        layer_norm_back(grad, x, weight, mean, inverse, grad_x, grad_weight, grad_bias, rows, width, threads);         \
    }                                                                                                                  \
    void rms_norm_##S(const T *x, const float *weight, T *y, float *inverse, float eps, int64_t rows, int64_t width,   \
                      int64_t threads) {                                                                               \
        rms_norm(x, weight, y, inverse, eps, rows, width, threads);                                                    \
    }                                                                                                                  \
    void rms_norm_back_##S(const T *grad, const T *x, const float *weight, const float *inverse, T *grad_x,            \
                           float *grad_weight, int64_t rows, int64_t width, int64_t threads) {                         \
        rms_norm_back(grad, x, weight, inverse, grad_x, grad_weight, rows, width, threads);                            \
    }                                                                                                                  \
    void gate_##S(const T *x, const T *up, T *y, int64_t gelu, int64_t count, int64_t threads) {                       \
        gelu ? gate<T, true>(x, up, y, count, threads) : gate<T, false>(x, up, y, count, threads);                     \
    }                                                                                                                  \
    void gate_back_##S(const T *grad, const T *x, const T *up, T *grad_x, T *grad_up, int64_t gelu, int64_t count,     \
                       int64_t threads) {                                                                              \
        gelu ? gate_back<T, true>(grad, x, up, grad_x, grad_up, count, threads)                                        \
             : gate_back<T, false>(grad, x, up, grad_x, grad_up, count, threads);                                      \
    }                                                                                                                  \
    void softmax_##S(const T *scores, const T *added, int64_t over_b, int64_t over_h, int64_t over_s, T *shares,       \
                     T *dropped, int64_t seed, int64_t steps, int64_t B, int64_t H, int64_t S_, int64_t L,             \
                     int64_t threads) {                                                                                \
        softmax(scores, added, over_b, over_h, over_s, shares, dropped, seed, steps, B, H, S_, L, threads);            \
    }                                                                                                                  \
    void softmax_back_##S(const T *grad, const T *shares, T *slope, int64_t drops, int64_t seed, int64_t steps,        \
                          int64_t rows, int64_t L, int64_t threads) {                                                  \
        softmax_back(grad, shares, slope, drops, seed, steps, rows, L, threads);                                       \
    }

extern "C" {
BOTH(float, f32)
BOTH(bf16, bf16)
}
