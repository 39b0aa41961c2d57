// bfloat16 as the upper half of a float32, rounded to the nearest and to even in doubt, as torch does.
#pragma once

#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};

static inline float wide(float x) { return x; }

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

static inline void put(float &to, float x) { to = x; }

static inline void put(bf16 &to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = (uint16_t)(x != x ? 0x7fc0 : rounded);
}
