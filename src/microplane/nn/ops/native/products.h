// y = x W^T for rows of x that are few, as generation multiplies: W is read once, as it is stored, and widened in
// registers. Up to FEW rows meet each row of W by dot products; of more rows, W is brought into panels of 32 outputs that
// stay in the nearest cache while all rows pass. nn/ops/few_rows.py has the shapes and the plain reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "bf16.h"
#include "simd.h"

#if defined(MASKS) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define FAST 1  // products of bfloat16 pairs, and of bytes
#endif

// How a weight is stored; nn/ops/stored.py has the same numbers.
enum { FLOAT32 = 1, BFLOAT16 = 2, INT8 = 3, NF4 = 4, GGUF4 = 5, GGUF8 = 6 };

// A linear layer, with a low-rank update B A if it has a rank. bias, A (rank, width) and B (rank, outputs), which is
// transposed, are in the format of x. Nothing but 8-byte words, as Python fills it.
struct Matrix {
    int64_t kind;
    const void *codes;
    const void *scales;  // INT8: float32 for each output; NF4: for each 64 weights; GGUF: float16 for each 32
    const void *other;   // NF4: its 16 levels, float32; GGUF4: what a block begins at, float16
    const void *bias;
    int64_t outputs, width;
    const void *A, *B;
    int64_t rank;
};

namespace {

const int OUTPUTS = 4;   // rows of W that are read together
const int ROWS = 4;      // rows of x that meet them while they are in registers
const int64_t FEW = 8;   // rows up to which dot products are taken
const int64_t TILE = 32;  // outputs of a panel
const int64_t SLICE = 256;  // of the width, that a panel holds
const int64_t BLOCK = 64, GGUF_BLOCK = 32;

typedef int8_t byte_lanes __attribute__((vector_size(16)));
typedef uint8_t code_lanes __attribute__((vector_size(16)));

inline lanes widened_bytes(const int8_t *from) {
    byte_lanes narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return __builtin_convertvector(__builtin_convertvector(narrow, int_lanes), lanes);
}

inline float half(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits >> 15) << 31, exponent = bits >> 10 & 31, rest = bits & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp((float)rest, -24);
    const uint32_t word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
}

inline lanes rounded(const float *, lanes x) { return x; }
inline lanes rounded(const bf16 *, lanes x) { return (lanes)(__builtin_convertvector(narrowed(x), word_lanes) << 16); }

// sums[o][r] = w_o . x_r over `width` numbers. O and R are at most OUTPUTS and ROWS.
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
            for (int64_t j = i; j < width; j++) rest += wide(w[o][j]) * wide(x[r][j]);
            sums[o][r] = rest;
        }
}

#ifdef FAST
// What is read next of `rows` rows that are read together, `bytes` each: they lie one behind the other, too short each
// for the processor to see where it goes on.
inline void fetch_next(const void *from, int64_t rows, int64_t bytes) {
    _mm_prefetch((const char *)from + rows * bytes, _MM_HINT_T0);
}

template <int O, int R>
inline void dots(const bf16 *const *w, const bf16 *const *x, int64_t width, float (*sums)[ROWS]) {
    __m512 kept[O][R];
    UNROLLED
    for (int o = 0; o < O; o++)
        UNROLLED
        for (int r = 0; r < R; r++) kept[o][r] = _mm512_setzero_ps();
    const auto add = [&](int64_t i, __mmask32 mask) {
        __m512bh weight[O];
        UNROLLED
        for (int o = 0; o < O; o++) weight[o] = (__m512bh)_mm512_maskz_loadu_epi16(mask, w[o] + i);
        UNROLLED
        for (int r = 0; r < R; r++) {
            const __m512bh input = (__m512bh)_mm512_maskz_loadu_epi16(mask, x[r] + i);
            UNROLLED
            for (int o = 0; o < O; o++) kept[o][r] = _mm512_dpbf16_ps(kept[o][r], weight[o], input);
        }
    };
    int64_t i = 0;
    for (; i + 32 <= width; i += 32) {
        UNROLLED
        for (int o = 0; o < O; o++) fetch_next(w[o] + i, O, 2 * width);
        add(i, ~(__mmask32)0);
    }
    if (i < width) add(i, ((__mmask32)1 << (width - i)) - 1);
    UNROLLED
    for (int o = 0; o < O; o++)
        UNROLLED
        for (int r = 0; r < R; r++) sums[o][r] = _mm512_reduce_add_ps(kept[o][r]);
}
#endif

// n <= 16 weights of row o from place i on, as float32. Of INT8 the codes alone: the scale comes after the sum.
template <int KIND>
inline lanes weights(const Matrix &m, int64_t o, int64_t i, int64_t n) {
    const int64_t at = o * m.width + i;
    if (KIND == FLOAT32) return load((const float *)m.codes + at, n, 0);
    if (KIND == BFLOAT16) return load((const bf16 *)m.codes + at, n, 0);
    if (KIND == NF4) {  // two codes a byte, the first in the high half
        const uint8_t *from = (const uint8_t *)m.codes + at / 2;
        int_lanes codes;
        for (int64_t j = 0; j < LANES; j++) codes[j] = j % 2 ? from[j / 2] & 15 : from[j / 2] >> 4;
        return __builtin_shuffle(load((const float *)m.other), codes) * ((const float *)m.scales)[at / BLOCK];
    }
    if (KIND == GGUF4) {  // a byte holds a code of the block's first half (low) and one of its second
        code_lanes both;
        std::memcpy(&both, (const uint8_t *)m.codes + (at - i % GGUF_BLOCK) / 2, sizeof both);
        const int_lanes codes = __builtin_convertvector(i % GGUF_BLOCK ? both >> 4 : both & 15, int_lanes);
        const float scale = half(((const uint16_t *)m.scales)[at / GGUF_BLOCK]);
        return __builtin_convertvector(codes, lanes) * scale + all(half(((const uint16_t *)m.other)[at / GGUF_BLOCK]));
    }
    const int8_t *codes = (const int8_t *)m.codes + at;
    if (KIND == GGUF8) return widened_bytes(codes) * half(((const uint16_t *)m.scales)[at / GGUF_BLOCK]);
    if (n == LANES) return widened_bytes(codes);
    lanes x = all(0);
    for (int64_t j = 0; j < n; j++) x[j] = codes[j];
    return x;
}

// A call of f for the kind, which f knows when it is compiled.
template <typename F>
inline void by_kind(int64_t kind, F f) {
    switch (kind) {
        case FLOAT32: return f(std::integral_constant<int, FLOAT32>());
        case BFLOAT16: return f(std::integral_constant<int, BFLOAT16>());
        case NF4: return f(std::integral_constant<int, NF4>());
        case GGUF4: return f(std::integral_constant<int, GGUF4>());
        case GGUF8: return f(std::integral_constant<int, GGUF8>());
        default: return f(std::integral_constant<int, INT8>());
    }
}

// The memory of one thread.
struct Space {
    std::vector<float> wide, decoded, sums, low, totals, steps;
    std::vector<int8_t> high_bytes, low_bytes;
    std::vector<bf16> pairs;
    std::vector<uint32_t> panel;
};

// Sums of 16 outputs at a time go to `emit`, after an INT8's scale: emit(r, first, x, n).
template <typename Emit>
inline void send(const Matrix &m, const float *sums, int64_t step, int64_t rows, int64_t first, int64_t n, Emit &emit) {
    const lanes scale = m.kind == INT8 ? load((const float *)m.scales + first, n, 0) : all(1.0f);
    for (int64_t r = 0; r < rows; r++) emit(r, first, load(sums + r * step) * scale, n);
}

// Any format, by float32.
template <typename T, typename Emit>
void product_plain(const Matrix &m, const T *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit emit) {
    const int64_t width = m.width;
    space.wide.resize(rows * width);
    for (int64_t i = 0; i < rows * width; i++) space.wide[i] = wide(x[i]);
    space.decoded.resize(OUTPUTS * (width + LANES));
    space.sums.resize(rows * LANES);
    for (int64_t start = first; start < end; start += LANES) {
        const int64_t n = std::min(LANES, end - start);
        for (int64_t o = 0; o < n; o += OUTPUTS) {
            const float *from[OUTPUTS];
            for (int64_t j = 0; j < OUTPUTS; j++) {
                const int64_t row = start + std::min(o + j, n - 1);
                float *to = space.decoded.data() + j * (width + LANES);
                if (m.kind == FLOAT32)
                    from[j] = (const float *)m.codes + row * width;
                else {
                    by_kind(m.kind, [&](auto kind) {
                        int64_t i = 0;
                        for (; i + LANES <= width; i += LANES) store(to + i, weights<kind.value>(m, row, i, LANES));
                        if (i < width) store(to + i, weights<kind.value>(m, row, i, width - i));
                    });
                    from[j] = to;
                }
            }
            for (int64_t r = 0; r < rows; r += ROWS) {
                const float *to[ROWS];
                for (int64_t j = 0; j < ROWS; j++) to[j] = space.wide.data() + std::min(r + j, rows - 1) * width;
                float found[OUTPUTS][ROWS];
                rows == 1 ? dots<OUTPUTS, 1>(from, to, width, found) : dots<OUTPUTS, ROWS>(from, to, width, found);
                for (int64_t j = 0; j < OUTPUTS; j++)
                    for (int64_t k = 0; k < std::min<int64_t>(ROWS, rows - r); k++)
                        space.sums[(r + k) * LANES + o + j] = found[j][k];
            }
        }
        send(m, space.sums.data(), LANES, rows, start, n, emit);
    }
}

#ifdef FAST
#include "products_fast.h"
#endif

template <typename T, typename Emit>
void product(const Matrix &m, const T *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit emit) {
#ifdef FAST
    if constexpr (std::is_same<T, bf16>::value)
        if (m.kind != FLOAT32 && m.width % 2 == 0) {
            if (rows <= FEW)
                product_few(m, x, rows, first, end, space, emit);
            else
                product_panels(m, x, rows, first, end, space, emit);
            return;
        }
#endif
    product_plain(m, x, rows, first, end, space, emit);
}

// Outputs first .. end - 1 of a whole layer, with bias and low-rank update: emit(r, o, x, n) gets 16 of a row at a time.
template <typename T, typename Emit>
void layer(const Matrix &m, const T *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit emit) {
    if (m.rank) {
        Matrix A = {};
        A.kind = sizeof(T) == 4 ? FLOAT32 : BFLOAT16, A.codes = m.A, A.outputs = m.rank, A.width = m.width;
        space.low.resize(rows * m.rank + LANES);
        float *low = space.low.data();
        product(A, x, rows, 0, m.rank, space, [=](int64_t r, int64_t o, lanes y, int64_t n) {
            store(low + r * m.rank + o, rounded((const T *)nullptr, y), n);
        });
    }
    const T *bias = (const T *)m.bias, *B = (const T *)m.B;
    const float *low = space.low.data();
    product(m, x, rows, first, end, space, [&](int64_t r, int64_t o, lanes y, int64_t n) {
        if (bias) y += load(bias + o, n, 0);
        for (int64_t j = 0; j < m.rank; j++) y += load(B + j * m.outputs + o, n, 0) * low[r * m.rank + j];
        emit(r, o, y, n);
    });
}

// The part of `count` that thread t of n does, in whole units.
inline void share(int64_t count, int64_t unit, int64_t t, int64_t n, int64_t &first, int64_t &end) {
    const int64_t units = (count + unit - 1) / unit;
    first = std::min(count, units * t / n * unit);
    end = std::min(count, units * (t + 1) / n * unit);
}

}  // namespace
