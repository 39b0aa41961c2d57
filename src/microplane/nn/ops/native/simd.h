// Loops that keep the processor's vectors full: sums in many numbers at once, and ends of rows without single steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define MASKS 1
#endif

#include "bf16.h"

// Before a loop over an array of sums: without it gcc may leave the array in memory, where a step costs twice as much.
#define UNROLLED _Pragma("GCC unroll 16")

const int64_t LANES = 16;
const int64_t WIDE = 64;  // sums are kept in so many numbers, for one alone would wait for itself

// The sum of f(0) ... f(n - 1).
template <typename F>
static inline float sum_of(int64_t n, F f) {
    float rest = 0;
    int64_t start = 0;
    if (n >= 2 * WIDE) {
        float sums[WIDE] = {0};
        for (; start + WIDE <= n; start += WIDE) {
#pragma omp simd
            for (int64_t j = 0; j < WIDE; j++) sums[j] += f(start + j);
        }
#pragma omp simd reduction(+ : rest)
        for (int64_t j = 0; j < WIDE; j++) rest += sums[j];
    }
#pragma omp simd reduction(+ : rest)
    for (int64_t i = start; i < n; i++) rest += f(i);
    return rest;
}

// Sixteen numbers at once, in one register or several.
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t int_lanes __attribute__((vector_size(64)));
typedef uint32_t word_lanes __attribute__((vector_size(64)));
typedef uint16_t half_lanes __attribute__((vector_size(32)));

static inline lanes all(float x) { return x - (lanes){}; }

static inline lanes load(const float *from) {
    lanes x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
static inline lanes load(const bf16 *from) {
    half_lanes narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return (lanes)(__builtin_convertvector(narrow, word_lanes) << 16);
}
static inline void store(float *to, lanes x) { std::memcpy(to, &x, sizeof x); }
static inline half_lanes narrowed(lanes x) {
    const word_lanes bits = (word_lanes)x;
    const word_lanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((x != x) ? (word_lanes{} + 0x7fc0) : rounded, half_lanes);
}
static inline void store(bf16 *to, lanes x) {
    const half_lanes narrow = narrowed(x);
    std::memcpy(to, &narrow, sizeof narrow);
}

// n <= 16 numbers, with `fill` behind them: nothing is read or written past n.
static inline lanes load(const float *from, int64_t n, float fill) {
#ifdef MASKS
    return (lanes)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), from);
#else
    lanes x = all(fill);
    for (int64_t i = 0; i < n; i++) x[i] = from[i];
    return x;
#endif
}
static inline lanes load(const bf16 *from, int64_t n, float fill) {
#ifdef MASKS
    const __mmask16 mask = (__mmask16)((1u << n) - 1);
    const half_lanes narrow = (half_lanes)_mm256_maskz_loadu_epi16(mask, from);
    const lanes x = (lanes)(__builtin_convertvector(narrow, word_lanes) << 16);
    return (lanes)_mm512_mask_blend_ps(mask, _mm512_set1_ps(fill), (__m512)x);
#else
    lanes x = all(fill);
    for (int64_t i = 0; i < n; i++) x[i] = wide(from[i]);
    return x;
#endif
}
static inline void store(float *to, lanes x, int64_t n) {
#ifdef MASKS
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)x);
#else
    for (int64_t i = 0; i < n; i++) to[i] = x[i];
#endif
}
static inline void store(bf16 *to, lanes x, int64_t n) {
    const half_lanes narrow = narrowed(x);
#ifdef MASKS
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1), (__m256i)narrow);
#else
    std::memcpy(to, &narrow, 2 * n);
#endif
}

static inline lanes larger(lanes a, lanes b) { return a > b ? a : b; }

static inline float largest(lanes x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = std::max(most, x[i]);
    return most;
}
static inline float sum(lanes x) {
    float all = 0;
#pragma omp simd reduction(+ : all)
    for (int i = 0; i < LANES; i++) all += x[i];
    return all;
}

// exp to about one unit in the last place: 2^n e^r with |r| <= ln 2 / 2, and a polynomial for e^r (Cephes' coefficients).
// Below -87.3 it is 0; above 88.3, that of 88.3; of NaN, NaN.
static inline lanes exponential(lanes x) {
    lanes kept = x < all(-87.3f) ? all(-87.3f) : x;
    kept = kept > all(88.3f) ? all(88.3f) : kept;
    const lanes shifted = kept * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: what is behind the point rounds off
    const lanes n = shifted - 12582912.0f;
    const lanes r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const lanes power = (lanes)((((int_lanes)shifted - 0x4b400000) + 127) << 23);
    return x < all(-87.3f) ? all(0.0f) : y * power;
}
