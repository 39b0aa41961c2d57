// Which elements dropout keeps: a number of 16 bits for each, out of a hash of its place. nn/dropout.py has the same in
// numpy. Of n elements, word j < half = ceil(n / 2) decides on element j (low bits) and on element half + j (high bits).
#pragma once

#include <algorithm>
#include <cstdint>

struct Keep {
    uint32_t low, high;  // of the seed
    uint32_t steps;      // of 65,536: how many of the numbers keep an element
    float scale;
    int64_t half;
};

// The seed is mixed first (SplitMix64), so that seeds with half of their bits alike give masks that have nothing in common.
static inline Keep keeping(int64_t seed, int64_t steps, int64_t count) {
    uint64_t z = (uint64_t)seed + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return {(uint32_t)z, (uint32_t)(z >> 32), (uint32_t)steps, 65536.0f / (float)steps, (count + 1) / 2};
}

static inline uint32_t word(uint32_t place, uint32_t low, uint32_t high) {
    uint32_t h = place * 0x9e3779b9u + low;
    h ^= h >> 16;
    h *= 0x21f0aaadu;
    h ^= h >> 15;
    h += high;
    h *= 0xd35a2d97u;
    h ^= h >> 15;
    return h;
}

// factors[i] for elements start ... start + count: the scale where kept, else 0.
static inline void fill_factors(float *factors, int64_t start, int64_t count, const Keep &keep) {
    const int64_t lower = std::min(count, std::max<int64_t>(0, keep.half - start));
    const uint32_t first = (uint32_t)start, second = (uint32_t)(start - keep.half);
    const uint32_t low = keep.low, high = keep.high, steps = keep.steps;
    const float scale = keep.scale;
#pragma omp simd
    for (int64_t i = 0; i < lower; i++)
        factors[i] = (word(first + (uint32_t)i, low, high) & 0xffffu) < steps ? scale : 0.0f;
#pragma omp simd
    for (int64_t i = lower; i < count; i++)
        factors[i] = (word(second + (uint32_t)i, low, high) >> 16) < steps ? scale : 0.0f;
}
