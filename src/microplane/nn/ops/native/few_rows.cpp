// Products of a few rows with a large weight, y = x W^T + bias, and attention of one new token a row to a cache: what
// generation does. Both are bound by reading the weight or the cache once, so nothing is widened on the way to memory.
// Shapes stand in nn/ops/few_rows.py and nn/ops/cached_attention.py, where each has its plain reference.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bf16.h"
#include "simd.h"

namespace {

const int OUTPUTS = 4;  // rows of the weight that are read together
const int ROWS = 4;     // rows of x that meet them while they are in registers

typedef int8_t byte_lanes __attribute__((vector_size(16)));
typedef uint8_t code_lanes __attribute__((vector_size(16)));

using ::load;
using ::wide;

inline float wide(int8_t x) { return (float)x; }

inline lanes load(const int8_t *from) {
    byte_lanes narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return __builtin_convertvector(__builtin_convertvector(narrow, int_lanes), lanes);
}

// sums[o][r] += w_o . x_r over `width` numbers. O and R are at most OUTPUTS and ROWS.
template <int O, int R, typename W, typename X>
inline void dots(const W *const *w, const X *const *x, int64_t width, float (*sums)[ROWS]) {
    lanes kept[O][R];
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) kept[o][r] = all(0.0f);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        lanes weight[O];
        for (int o = 0; o < O; o++) weight[o] = load(w[o] + i);
        for (int r = 0; r < R; r++) {
            const lanes input = load(x[r] + i);
            for (int o = 0; o < O; o++) kept[o][r] += weight[o] * input;
        }
    }
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) {
            float rest = sum(kept[o][r]);
            for (int64_t j = i; j < width; j++) rest += (float)wide(w[o][j]) * wide(x[r][j]);
            sums[o][r] = rest;
        }
}

#if defined(__AVX512BF16__)
template <int O, int R>
inline void dots(const bf16 *const *w, const bf16 *const *x, int64_t width, float (*sums)[ROWS]) {
    __m512 kept[O][R];
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) kept[o][r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 32) {
        const __mmask32 mask = width - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (width - i)) - 1;
        __m512bh weight[O];
        for (int o = 0; o < O; o++) weight[o] = (__m512bh)_mm512_maskz_loadu_epi16(mask, w[o] + i);
        for (int r = 0; r < R; r++) {
            const __m512bh input = (__m512bh)_mm512_maskz_loadu_epi16(mask, x[r] + i);
            for (int o = 0; o < O; o++) kept[o][r] = _mm512_dpbf16_ps(kept[o][r], weight[o], input);
        }
    }
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) sums[o][r] = _mm512_reduce_add_ps(kept[o][r]);
}
#endif

template <int O, typename W, typename X>
inline void dots_of(int rows, const W *const *w, const X *const *x, int64_t width, float (*sums)[ROWS]) {
    switch (rows) {
        case 1: return dots<O, 1>(w, x, width, sums);
        case 2: return dots<O, 2>(w, x, width, sums);
        case 3: return dots<O, 3>(w, x, width, sums);
        default: return dots<O, 4>(w, x, width, sums);
    }
}

// Y is the format of y and bias; scale, if given, is one number for each row of W.
template <typename W, typename X, typename Y>
void product(const W *w, const float *scale, const X *x, const Y *bias, Y *y, int64_t rows, int64_t width, int64_t outputs,
             int64_t threads) {
    const int64_t blocks = (outputs + OUTPUTS - 1) / OUTPUTS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * OUTPUTS, count = std::min<int64_t>(OUTPUTS, outputs - first);
        const W *from[OUTPUTS];
        for (int o = 0; o < OUTPUTS; o++) from[o] = w + (first + std::min<int64_t>(o, count - 1)) * width;
        for (int64_t start = 0; start < rows; start += ROWS) {
            const int R = (int)std::min<int64_t>(ROWS, rows - start);
            const X *to[ROWS];
            for (int r = 0; r < R; r++) to[r] = x + (start + r) * width;
            float sums[OUTPUTS][ROWS];
            dots_of<OUTPUTS>(R, from, to, width, sums);
            for (int o = 0; o < count; o++)
                for (int r = 0; r < R; r++) {
                    float value = sums[o][r] * (scale ? scale[first + o] : 1.0f);
                    if (bias) value += wide(bias[first + o]);
                    put(y[(start + r) * outputs + first + o], value);
                }
        }
    }
}

template <typename X>
std::vector<float> widened(const X *x, int64_t count) {
    std::vector<float> found(count);
    for (int64_t i = 0; i < count; i++) found[i] = wide(x[i]);
    return found;
}

const int64_t BLOCK = 64;  // weights with one absmax

// NF4: two codes a byte, the first in the high half. x is apart in numbers at even and at odd places.
template <typename X>
void nf4_product(const uint8_t *codes, const float *absmax, const float *levels, const X *x, const X *bias, X *y, int64_t rows,
                 int64_t width, int64_t outputs, int64_t threads) {
    const int64_t half = width / 2, blocks = width / BLOCK;
    std::vector<float> apart(rows * width);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < half; i++) {
            apart[r * width + i] = wide(x[r * width + 2 * i]);
            apart[r * width + half + i] = wide(x[r * width + 2 * i + 1]);
        }
    const lanes table = load(levels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < outputs; o++) {
        const uint8_t *from = codes + o * half;
        const float *scales = absmax + o * blocks;
        for (int64_t start = 0; start < rows; start += ROWS) {
            const int R = (int)std::min<int64_t>(ROWS, rows - start);
            lanes kept[ROWS];
            for (int r = 0; r < ROWS; r++) kept[r] = all(0.0f);
            for (int64_t b = 0; b < blocks; b++) {
                const lanes scale = all(scales[b]);
                for (int64_t i = b * BLOCK / 2; i < (b + 1) * BLOCK / 2; i += LANES) {
                    code_lanes pairs;
                    std::memcpy(&pairs, from + i, sizeof pairs);
                    const int_lanes both = __builtin_convertvector(pairs, int_lanes);
                    const lanes even = __builtin_shuffle(table, both >> 4) * scale;
                    const lanes odd = __builtin_shuffle(table, both & 15) * scale;
                    for (int r = 0; r < R; r++) {
                        const float *input = apart.data() + (start + r) * width + i;
                        kept[r] += even * load(input) + odd * load(input + half);
                    }
                }
            }
            for (int r = 0; r < R; r++) put(y[(start + r) * outputs + o], sum(kept[r]) + (bias ? wide(bias[o]) : 0.0f));
        }
    }
}

// One new token a row: its key and value are put at the row's end, and its query attends to all of the row's keys, or
// to the last `window` (0: no limit). width is a multiple of LANES. shares (heads of all rows, capacity) is scratch.
template <typename T>
void cached_attention(const T *q, const T *k, const T *v, const T *cosines, const T *sines, T *keys, T *values,
                      const int64_t *lengths, float *shares, T *y, float scale, int64_t rows, int64_t heads, int64_t kv,
                      int64_t capacity, int64_t width, int64_t window, int64_t threads) {
    const int64_t half = width / 2, group = heads / kv;
    auto turned = [&](const T *from, int64_t row, T *to) {
        if (!cosines) {
            std::memcpy(to, from, sizeof(T) * width);
            return;
        }
        for (int64_t i = 0; i < half; i++) {
            const float a = wide(from[i]), b = wide(from[half + i]);
            const float c = wide(cosines[row * half + i]), s = wide(sines[row * half + i]);
            put(to[i], a * c - b * s);
            put(to[half + i], b * c + a * s);
        }
    };
    for (int64_t b = 0; b < rows; b++)  // little, and to be there before any head looks
        for (int64_t g = 0; g < kv; g++) {
            const int64_t place = ((b * kv + g) * capacity + lengths[b]) * width;
            turned(k + (b * kv + g) * width, b, keys + place);
            std::memcpy(values + place, v + (b * kv + g) * width, sizeof(T) * width);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < rows * heads; n++) {
        const int64_t b = n / heads, g = n % heads / group, end = lengths[b] + 1;
        const int64_t first = window ? std::max<int64_t>(0, end - window) : 0;
        const T *own_keys = keys + (b * kv + g) * capacity * width, *own_values = values + (b * kv + g) * capacity * width;
        std::vector<T> query(width);
        turned(q + n * width, b, query.data());
        float *own = shares + n * capacity, most = -INFINITY, total = 0;
        for (int64_t j = first; j < end; j++) {
            lanes kept = all(0.0f);
            for (int64_t i = 0; i < width; i += LANES) kept += load(query.data() + i) * load(own_keys + j * width + i);
            own[j] = sum(kept) * scale;
            most = std::max(most, own[j]);
        }
        for (int64_t j = first; j < end; j++) total += own[j] = std::exp(own[j] - most);
        std::vector<float> mixed(width, 0.0f);
        for (int64_t j = first; j < end; j++) {
            const float share = own[j] / total;
            for (int64_t i = 0; i < width; i += LANES) store(mixed.data() + i, load(mixed.data() + i) + all(share) * load(own_values + j * width + i));
        }
        for (int64_t i = 0; i < width; i++) put(y[n * width + i], mixed[i]);
    }
}

}  // namespace

extern "C" {

void few_rows_bf16(const uint16_t *w, const uint16_t *x, const uint16_t *bias, uint16_t *y, int64_t rows, int64_t width,
                   int64_t outputs, int64_t threads) {
    product((const bf16 *)w, nullptr, (const bf16 *)x, (const bf16 *)bias, (bf16 *)y, rows, width, outputs, threads);
}
void few_rows_int8_bf16(const int8_t *w, const float *scale, const uint16_t *x, const uint16_t *bias, uint16_t *y,
                        int64_t rows, int64_t width, int64_t outputs, int64_t threads) {
    const auto input = widened((const bf16 *)x, rows * width);
    product(w, scale, input.data(), (const bf16 *)bias, (bf16 *)y, rows, width, outputs, threads);
}
void few_rows_int8_f32(const int8_t *w, const float *scale, const float *x, const float *bias, float *y, int64_t rows,
                       int64_t width, int64_t outputs, int64_t threads) {
    product(w, scale, x, bias, y, rows, width, outputs, threads);
}
void few_rows_nf4_bf16(const uint8_t *codes, const float *absmax, const float *levels, const uint16_t *x, const uint16_t *bias,
                       uint16_t *y, int64_t rows, int64_t width, int64_t outputs, int64_t threads) {
    nf4_product(codes, absmax, levels, (const bf16 *)x, (const bf16 *)bias, (bf16 *)y, rows, width, outputs, threads);
}
void few_rows_nf4_f32(const uint8_t *codes, const float *absmax, const float *levels, const float *x, const float *bias, float *y,
                      int64_t rows, int64_t width, int64_t outputs, int64_t threads) {
    nf4_product(codes, absmax, levels, x, bias, y, rows, width, outputs, threads);
}
void cached_attention_bf16(const uint16_t *q, const uint16_t *k, const uint16_t *v, const uint16_t *cosines,
                           const uint16_t *sines, uint16_t *keys, uint16_t *values, const int64_t *lengths, float *shares,
                           uint16_t *y, float scale, int64_t rows, int64_t heads, int64_t kv, int64_t capacity, int64_t width,
                           int64_t window, int64_t threads) {
    cached_attention((const bf16 *)q, (const bf16 *)k, (const bf16 *)v, (const bf16 *)cosines, (const bf16 *)sines,
                     (bf16 *)keys, (bf16 *)values, lengths, shares, (bf16 *)y, scale, rows, heads, kv, capacity, width,
                     window, threads);
}
void cached_attention_f32(const float *q, const float *k, const float *v, const float *cosines, const float *sines,
                          float *keys, float *values, const int64_t *lengths, float *shares, float *y, float scale,
                          int64_t rows, int64_t heads, int64_t kv, int64_t capacity, int64_t width, int64_t window,
                          int64_t threads) {
    cached_attention(q, k, v, cosines, sines, keys, values, lengths, shares, y, scale, rows, heads, kv, capacity, width,
                     window, threads);
}
}
