// Rows in 8 bits, products' int32 sums back in a floating format, and NF4 codes expanded. Shapes stand in nn/ops/int8.py
// and nn/nf4.py, where each of these has its plain reference. bfloat16 is the upper half of a float32.

#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__SSSE3__)
#include <immintrin.h>
#endif

#include "bf16.h"

namespace {

template <typename T>
void quantise_rows(const T *x, const float *columns, int8_t *codes, float *scale, int64_t rows, int64_t width,
                   int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T *from = x + r * width;
        int8_t *to = codes + r * width;
        float most = 0;
        int32_t nan = 0;  // a maximum passes over it
        if (columns) {
#pragma omp simd reduction(max : most) reduction(| : nan)
            for (int64_t i = 0; i < width; i++) {
                const float v = std::fabs(wide(from[i]) * columns[i]);
                most = std::max(most, v);
                nan |= v != v;
            }
        } else {
#pragma omp simd reduction(max : most) reduction(| : nan)
            for (int64_t i = 0; i < width; i++) {
                const float v = std::fabs(wide(from[i]));
                most = std::max(most, v);
                nan |= v != v;
            }
        }
        if (nan) most = NAN;  // the row's products are none
        scale[r] = most / 127;
        const float factor = 127 / std::max(most, 1e-37f);
        if (columns) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) to[i] = (int8_t)(int32_t)std::nearbyint(wide(from[i]) * columns[i] * factor);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) to[i] = (int8_t)(int32_t)std::nearbyint(wide(from[i]) * factor);
        }
    }
}

template <typename T>
void scale_sums(const int32_t *sums, const float *row_scale, const float *columns, const T *bias, T *out, int64_t rows,
                int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *from = sums + r * width;
        T *to = out + r * width;
        const float scale = row_scale[r];
        if (columns && bias) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (float)from[i] * (scale * columns[i]) + wide(bias[i]));
        } else if (columns) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (float)from[i] * (scale * columns[i]));
        } else if (bias) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (float)from[i] * scale + wide(bias[i]));
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(to[i], (float)from[i] * scale);
        }
    }
}

const int64_t BLOCK = 64;

// 64 numbers of a table of 16, by 32 bytes of two codes each, the first in the high half.
inline void look_up(const uint8_t *codes, const int8_t *table, int8_t *to) {
#if defined(__SSSE3__)
    const __m128i numbers = _mm_loadu_si128((const __m128i *)table), mask = _mm_set1_epi8(15);
    for (int i = 0; i < 32; i += 16) {
        const __m128i pairs = _mm_loadu_si128((const __m128i *)(codes + i));
        const __m128i first = _mm_shuffle_epi8(numbers, _mm_and_si128(_mm_srli_epi16(pairs, 4), mask));
        const __m128i second = _mm_shuffle_epi8(numbers, _mm_and_si128(pairs, mask));
        _mm_storeu_si128((__m128i *)(to + 2 * i), _mm_unpacklo_epi8(first, second));
        _mm_storeu_si128((__m128i *)(to + 2 * i + 16), _mm_unpackhi_epi8(first, second));
    }
#else
    for (int i = 0; i < 32; i++) {
        to[2 * i] = table[codes[i] >> 4];
        to[2 * i + 1] = table[codes[i] & 15];
    }
#endif
}

inline void look_up(const uint8_t *codes, const bf16 *table, bf16 *to) {
#if defined(__SSSE3__)
    int8_t low[16], high[16];  // the two bytes of each number
    for (int i = 0; i < 16; i++) {
        low[i] = (int8_t)(table[i].bits & 255);
        high[i] = (int8_t)(table[i].bits >> 8);
    }
    int8_t lows[64], highs[64];
    look_up(codes, low, lows);
    look_up(codes, high, highs);
    for (int i = 0; i < 64; i += 16) {
        const __m128i l = _mm_loadu_si128((const __m128i *)(lows + i));
        const __m128i h = _mm_loadu_si128((const __m128i *)(highs + i));
        _mm_storeu_si128((__m128i *)(to + i), _mm_unpacklo_epi8(l, h));
        _mm_storeu_si128((__m128i *)(to + i + 8), _mm_unpackhi_epi8(l, h));
    }
#else
    for (int i = 0; i < 32; i++) {
        to[2 * i] = table[codes[i] >> 4];
        to[2 * i + 1] = table[codes[i] & 15];
    }
#endif
}

}  // namespace

extern "C" {

void quantise_rows_bf16(const uint16_t *x, const float *columns, int8_t *codes, float *scale, int64_t rows,
                        int64_t width, int64_t threads) {
    quantise_rows((const bf16 *)x, columns, codes, scale, rows, width, threads);
}
void quantise_rows_f32(const float *x, const float *columns, int8_t *codes, float *scale, int64_t rows, int64_t width,
                       int64_t threads) {
    quantise_rows(x, columns, codes, scale, rows, width, threads);
}
void scale_sums_bf16(const int32_t *sums, const float *row_scale, const float *columns, const uint16_t *bias,
                     uint16_t *out, int64_t rows, int64_t width, int64_t threads) {
    scale_sums(sums, row_scale, columns, (const bf16 *)bias, (bf16 *)out, rows, width, threads);
}
void scale_sums_f32(const int32_t *sums, const float *row_scale, const float *columns, const float *bias, float *out,
                    int64_t rows, int64_t width, int64_t threads) {
    scale_sums(sums, row_scale, columns, bias, out, rows, width, threads);
}

// NF4's 16 levels are given, nn/nf4.py has them. Rows of whole blocks: width a multiple of 64. scale (rows,) is the largest absmax of each row / 127.
void nf4_to_int8(const uint8_t *codes, const float *absmax, const float *levels, int8_t *out, float *scale, int64_t rows, int64_t width,
                 int64_t threads) {
    const int64_t blocks = width / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *largest = absmax + r * blocks;
        float most = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const float v = std::fabs(largest[b]);
            most = v >= most || v != v ? v : most;  // a NaN stays
        }
        scale[r] = most / 127;
        const float factor = 127 / std::max(most, 1e-37f);
        for (int64_t b = 0; b < blocks; b++) {
            int8_t table[16];
            const float f = largest[b] * factor;
            for (int i = 0; i < 16; i++) table[i] = (int8_t)(int32_t)std::nearbyint(levels[i] * f);
            const int64_t start = r * width + b * BLOCK;
            look_up(codes + start / 2, table, out + start);
        }
    }
}

// Whole blocks of 64.
void nf4_to_bf16(const uint8_t *codes, const float *absmax, const float *levels, uint16_t *out, int64_t blocks, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        bf16 table[16];
        for (int i = 0; i < 16; i++) put(table[i], levels[i] * absmax[b]);
        look_up(codes + b * BLOCK / 2, table, (bf16 *)out + b * BLOCK);
    }
}
}
