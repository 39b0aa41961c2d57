// Products of a few rows with a large weight, y = x W^T + bias, and attention of one new token a row to a cache: what
// generation does. Both are bound by reading the weight or the cache once, so nothing is widened on the way to memory.
// Shapes stand in nn/ops/few_rows.py and nn/ops/cached_attention.py, where each has its plain reference.

#include "products.h"

namespace {

// y (rows, outputs): threads take shares of the outputs.
template <typename T>
void few_rows(const Matrix &m, const T *x, T *y, int64_t rows, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < threads; t++) {
        Space space;
        int64_t first, end;
        share(m.outputs, TILE, t, threads, first, end);
        layer(m, x, rows, first, end, space,
              [=](int64_t r, int64_t o, lanes sums, int64_t n) { store(y + r * m.outputs + o, sums, n); });
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

void few_rows_bf16(const Matrix *m, const uint16_t *x, uint16_t *y, int64_t rows, int64_t threads) {
    few_rows(*m, (const bf16 *)x, (bf16 *)y, rows, threads);
}
void few_rows_f32(const Matrix *m, const float *x, float *y, int64_t rows, int64_t threads) {
    few_rows(*m, x, y, rows, threads);
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
