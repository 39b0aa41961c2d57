// Cross-entropy of rows of logits, whose gradient takes their place. The plain reference is nn/loss.py's.

#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.h"
#include "bf16.h"

namespace {

// Sixteen logits from place i on of a row, minus infinity behind its end.
template <typename T>
inline lanes logits_at(const T *row, const float *bias, int64_t i, int64_t width) {
    if (i + LANES <= width) return bias ? load(row + i) + load(bias + i) : load(row + i);
    const lanes x = load(row + i, width - i, -INFINITY);
    return bias ? x + load(bias + i, width - i, 0.0f) : x;
}

// logits (rows, width), replaced by the gradient of the row's loss where one is wanted; bias (width,) may be missing.
template <typename T>
void cross_entropy(T *logits, const float *bias, const int64_t *targets, float *losses, float smoothing, int64_t slope,
                   int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<lanes> space((width + LANES - 1) / LANES);
        float *z = (float *)space.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            T *row = logits + r * width;
            const int64_t target = targets[r];
            const float wanted = wide(row[target]) + (bias ? bias[target] : 0.0f);
            lanes most = all(-INFINITY), sums = {}, logs = {};
            for (int64_t i = 0; i < width; i += LANES) most = larger(most, logits_at(row, bias, i, width));
            const float top = largest(most);
            for (int64_t i = 0; i < width; i += LANES) {
                const lanes x = logits_at(row, bias, i, width) - top, y = exponential(x);
                store(z + i, y);
                sums += y;
                if (smoothing) logs += i + LANES <= width ? x : (x == all(-INFINITY) ? all(0.0f) : x);
            }
            const float total = sum(sums);
            losses[r] = std::log(total) - (1 - smoothing) * (wanted - top) - smoothing * sum(logs) / width;
            if (!slope) continue;
            const float inverse = 1 / total, spread = smoothing / width;
            const float there = z[target] * inverse - spread - (1 - smoothing);
            for (int64_t i = 0; i < width; i += LANES) {
                const lanes share = load(z + i) * inverse - spread;
                if (i + LANES <= width)
                    store(row + i, share);
                else
                    store(row + i, share, width - i);
            }
            put(row[target], there);
        }
    }
}

}  // namespace

extern "C" {

void cross_entropy_bf16(uint16_t *logits, const float *bias, const int64_t *targets, float *losses, float smoothing,
                        int64_t slope, int64_t rows, int64_t width, int64_t threads) {
    cross_entropy((bf16 *)logits, bias, targets, losses, smoothing, slope, rows, width, threads);
}
void cross_entropy_f32(float *logits, const float *bias, const int64_t *targets, float *losses, float smoothing,
                       int64_t slope, int64_t rows, int64_t width, int64_t threads) {
    cross_entropy(logits, bias, targets, losses, smoothing, slope, rows, width, threads);
}
}
