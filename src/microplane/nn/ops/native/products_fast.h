// The part of products.h for processors with products of bfloat16 pairs and of bytes (AVX-512 BF16 and VNNI); x is in
// bfloat16. A row of x that meets bytes is taken apart into bytes too: step (256 high + low), 15 bits beside its largest.

const int64_t CHUNK = 64;  // weights that are handled together

// Sixteen vectors of sixteen words, rows to columns.
inline void transpose(__m512i *v) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // column i of each group of 4 rows: its four 128-bit parts are words i, 4+i, 8+i, 12+i
        const __m512i a = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88), b = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) v[i] = t[i];
}

inline __mmask32 first_of_32(int64_t n) { return n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << std::max<int64_t>(n, 0)) - 1; }

inline lanes halves(const uint16_t *from, int64_t n) {
    const __mmask16 mask = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
    return (lanes)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}

// 32 weights of row o from place i on, as bfloat16, zeros behind the end.
template <int KIND>
inline __m512i pairs_of(const Matrix &m, int64_t o, int64_t i) {
    const int64_t left = m.width - i, at = o * m.width + i;
    if (KIND == BFLOAT16) {
        const bf16 *from = (const bf16 *)m.codes + at;
        return left >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(first_of_32(left), from);
    }
    if (KIND == NF4) {
        const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)m.codes + at / 2)));
        const __m512 levels = (__m512)load((const float *)m.other), scale = _mm512_set1_ps(((const float *)m.scales)[at / BLOCK]);
        const __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), levels), scale);
        const __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(both, levels), scale);  // the index is its low four bits
        const __m512i bits = (__m512i)_mm512_cvtne2ps_pbh(odd, even);  // even 0..15, odd 0..15
        const __m256i first = _mm512_castsi512_si256(bits), second = _mm512_extracti64x4_epi64(bits, 1);
        return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
    }
    if (KIND == INT8 && left >= 32) {
        const __m256i codes = _mm256_loadu_si256((const __m256i *)((const int8_t *)m.codes + at));
        const __m512i first = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes));
        const __m512i second = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1));
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(second), _mm512_cvtepi32_ps(first));
    }
    const lanes low = weights<KIND>(m, o, i, std::min(left, LANES));
    const lanes high = left > LANES ? weights<KIND>(m, o, i + LANES, std::min(left - LANES, LANES)) : all(0);
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// Weights of TILE outputs, `width` of each from place i on, as words of two: panel (width / 2, TILE).
template <int KIND>
__attribute__((noinline)) void pack_panel(const Matrix &m, int64_t first, int64_t end, int64_t i, int64_t width, uint32_t *panel) {
    for (int64_t group = 0; group < TILE; group += 16)
        for (int64_t k = 0; k < width; k += 32) {
            __m512i v[16];
            for (int64_t o = 0; o < 16; o++) v[o] = pairs_of<KIND>(m, std::min(first + group + o, end - 1), i + k);
            transpose(v);
            for (int64_t p = 0; p < 16; p++) _mm512_storeu_si512(panel + (k / 2 + p) * TILE + group, v[p]);
        }
}

// The codes of the panel that is packed next, which come nearer while this one is multiplied.
struct Next {
    const char *codes;  // null: there is none, or they have been asked for
    int64_t row, bytes;  // from one output to the next, and of a slice
};

// sums (R, TILE) += x (R rows, `pairs` words) panel.
template <int R>
__attribute__((noinline)) void panel_rows(const bf16 *x, int64_t width, const uint32_t *panel, int64_t pairs, float *sums, const Next &next) {
    __m512 kept[R][2];
    UNROLLED
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 2; c++) kept[r][c] = _mm512_loadu_ps(sums + r * TILE + 16 * c);
    for (int64_t p = 0; p < pairs; p++) {
        if (next.codes) {  // of a whole slice four steps are a row of codes
            const char *at = next.codes + p / 4 * next.row + p % 4 * next.bytes / 4;
            _mm_prefetch(at, _MM_HINT_T1);
            if (next.bytes > 4 * 64) _mm_prefetch(at + 64, _MM_HINT_T1);
        }
        const __m512bh a = (__m512bh)_mm512_loadu_si512(panel + p * TILE);
        const __m512bh b = (__m512bh)_mm512_loadu_si512(panel + p * TILE + 16);
        UNROLLED
        for (int r = 0; r < R; r++) {
            int32_t word;
            std::memcpy(&word, x + r * width + 2 * p, 4);
            const __m512bh input = (__m512bh)_mm512_set1_epi32(word);
            kept[r][0] = _mm512_dpbf16_ps(kept[r][0], a, input);
            kept[r][1] = _mm512_dpbf16_ps(kept[r][1], b, input);
        }
    }
    UNROLLED
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 2; c++) _mm512_storeu_ps(sums + r * TILE + 16 * c, kept[r][c]);
}

template <typename Emit>
void product_panels(const Matrix &m, const bf16 *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit emit) {
    space.panel.resize(SLICE / 2 * TILE);
    space.sums.resize(rows * TILE);
    uint32_t *panel = space.panel.data();
    const int64_t bits = m.kind == BFLOAT16 ? 16 : m.kind == NF4 || m.kind == GGUF4 ? 4 : 8;
    for (int64_t start = first; start < end; start += TILE) {
        std::fill(space.sums.begin(), space.sums.end(), 0.0f);
        for (int64_t i = 0; i < m.width; i += SLICE) {
            const int64_t slice = std::min(SLICE, m.width - i);
            by_kind(m.kind, [&](auto kind) { pack_panel<kind.value>(m, start, end, i, slice, panel); });
            const bool goes_on = i + SLICE < m.width, last = !goes_on && start + TILE >= end;
            const int64_t place = goes_on ? start * m.width + i + SLICE : (start + TILE) * m.width;
            Next next = {last ? nullptr : (const char *)m.codes + place * bits / 8, m.width * bits / 8, SLICE * bits / 8};
            for (int64_t r = 0; r < rows; r += 8, next.codes = nullptr) {
                const bf16 *from = x + r * m.width + i;
                float *sums = space.sums.data() + r * TILE;
                switch (rows - r) {
                    case 1: panel_rows<1>(from, m.width, panel, slice / 2, sums, next); break;
                    case 2: panel_rows<2>(from, m.width, panel, slice / 2, sums, next); break;
                    case 3: panel_rows<3>(from, m.width, panel, slice / 2, sums, next); break;
                    case 4: panel_rows<4>(from, m.width, panel, slice / 2, sums, next); break;
                    case 5: panel_rows<5>(from, m.width, panel, slice / 2, sums, next); break;
                    case 6: panel_rows<6>(from, m.width, panel, slice / 2, sums, next); break;
                    case 7: panel_rows<7>(from, m.width, panel, slice / 2, sums, next); break;
                    default: panel_rows<8>(from, m.width, panel, slice / 2, sums, next);
                }
            }
        }
        for (int64_t o = start; o < std::min(start + TILE, end); o += LANES)
            send(m, space.sums.data() + o - start, TILE, rows, o, std::min(LANES, end - o), emit);
    }
}

// x for products of bytes. `totals` (rows, blocks): the sum of each GGUF block, of INT8 of all. What is no finite number
// makes the row's sums NaN.
inline void split(const Matrix &m, const bf16 *x, int64_t rows, Space &space) {
    const int64_t padded = (m.width + CHUNK - 1) / CHUNK * CHUNK, blocks = padded / GGUF_BLOCK + LANES;
    space.high_bytes.resize(rows * padded), space.low_bytes.resize(rows * padded);
    space.totals.assign(rows * blocks, 0.0f), space.steps.resize(rows);
    const int slot[CHUNK / LANES] = {0, m.kind == GGUF4 ? 2 : 1, m.kind == GGUF4 ? 1 : 2, 3};  // where unpacking puts codes
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *from = x + r * m.width;
        lanes largest_of = all(1e-30f), nothing = all(0.0f);  // 0 times a finite number is 0
        for (int64_t i = 0; i < m.width; i += LANES) {
            const lanes numbers = load(from + i, std::min(LANES, m.width - i), 0);
            largest_of = larger((lanes)_mm512_abs_ps((__m512)numbers), largest_of);
            nothing += numbers * 0.0f;
        }
        const float most = largest(largest_of), inverse = 32512.0f / most;
        space.steps[r] = sum(nothing) == 0.0f ? most / 32512.0f : NAN;
        __m512i total = _mm512_setzero_si512();
        for (int64_t i = 0; i < padded; i += CHUNK) {
            __m512i whole[CHUNK / LANES];
            for (int64_t j = 0; j < CHUNK / LANES; j++) {
                const int64_t left = std::clamp<int64_t>(m.width - i - j * LANES, 0, LANES);
                whole[j] = _mm512_cvtps_epi32((__m512)(load(from + i + j * LANES, left, 0) * inverse));
                const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole[j], _mm512_set1_epi32(128)), 8);
                const __m512i lower = _mm512_sub_epi32(whole[j], _mm512_slli_epi32(upper, 8));
                const int64_t at = r * padded + i + slot[j] * LANES;
                _mm_storeu_si128((__m128i *)(space.high_bytes.data() + at), _mm512_cvtepi32_epi8(upper));
                _mm_storeu_si128((__m128i *)(space.low_bytes.data() + at), _mm512_cvtepi32_epi8(lower));
            }
            const __m512i first = _mm512_add_epi32(whole[0], whole[1]), second = _mm512_add_epi32(whole[2], whole[3]);
            if (m.kind == INT8) {
                total = _mm512_add_epi32(total, _mm512_add_epi32(first, second));
                continue;
            }
            float *totals = space.totals.data() + r * blocks + i / GGUF_BLOCK;
            totals[0] = (float)_mm512_reduce_add_epi32(first), totals[1] = (float)_mm512_reduce_add_epi32(second);
        }
        if (m.kind == INT8) space.totals[r * blocks] = (float)_mm512_reduce_add_epi32(total);
    }
}

// x as NF4's codes are unpacked: a chunk's 64 are 4 parts, of which one register has the halves of bytes that
// come first, and one those that come second.
inline void arrange(const Matrix &m, const bf16 *x, int64_t rows, Space &space) {
    space.pairs.resize(rows * m.width);
    alignas(64) uint16_t place[CHUNK];  // of 16-bit numbers, 8 in a lane; lanes: codes that are high, high, low, low halves
    for (int64_t p = 0; p < CHUNK; p++) {
        const int64_t lane = p % 32 / 8, byte = p % 8 + p / 32 * 8;
        place[p] = (uint16_t)(2 * (byte + (lane % 2) * 16) + lane / 2);
    }
    const __m512i first = _mm512_load_si512(place), second = _mm512_load_si512(place + 32);
    for (int64_t i = 0; i < rows * m.width; i += CHUNK) {
        const __m512i low = _mm512_loadu_si512(x + i), high = _mm512_loadu_si512(x + i + 32);
        _mm512_storeu_si512(space.pairs.data() + i, _mm512_permutex2var_epi16(low, first, high));
        _mm512_storeu_si512(space.pairs.data() + i + 32, _mm512_permutex2var_epi16(low, second, high));
    }
}

inline __m512i codes_of(const Matrix &m, int64_t o, int64_t i) {
    const int64_t left = m.width - i, at = o * m.width + i;
    if (m.kind == GGUF4) {
        const __mmask32 mask = left >= CHUNK ? ~(__mmask32)0 : 0xffff;
        const __m256i both = _mm256_maskz_loadu_epi8(mask, (const uint8_t *)m.codes + at / 2);
        const __m512i apart = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
        return _mm512_and_si512(apart, _mm512_set1_epi8(15));
    }
    const __mmask64 mask = left >= CHUNK ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, (const int8_t *)m.codes + at), _mm512_set1_epi8((char)0x80));
}

// INT8: sums[o][r] of rows o .. o + O - 1 of W, without their scales. Codes are shifted by 128 to have no sign.
template <int O, int R>
inline void int8_dots(const Matrix &m, const int64_t *outputs, const Space &space, int64_t row, float (*sums)[ROWS]) {
    const int64_t padded = (m.width + CHUNK - 1) / CHUNK * CHUNK, blocks = padded / GGUF_BLOCK + LANES;
    __m512i high[O][R], low[O][R];
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) high[o][r] = low[o][r] = _mm512_setzero_si512();
    for (int64_t i = 0; i < padded; i += CHUNK) {
        __m512i codes[O];
        for (int o = 0; o < O; o++) {
            codes[o] = codes_of(m, outputs[o], i);
            fetch_next((const int8_t *)m.codes + outputs[o] * m.width + i, O, m.width);
        }
        for (int r = 0; r < R; r++) {
            const __m512i upper = _mm512_loadu_si512(space.high_bytes.data() + (row + r) * padded + i);
            const __m512i lower = _mm512_loadu_si512(space.low_bytes.data() + (row + r) * padded + i);
            for (int o = 0; o < O; o++) {
                high[o][r] = _mm512_dpbusd_epi32(high[o][r], codes[o], upper);
                low[o][r] = _mm512_dpbusd_epi32(low[o][r], codes[o], lower);
            }
        }
    }
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) {
            const double whole = 256.0 * _mm512_reduce_add_epi32(high[o][r]) + _mm512_reduce_add_epi32(low[o][r]);
            sums[o][r] = (float)(whole - 128.0 * space.totals[(row + r) * blocks]) * space.steps[row + r];
        }
}

// GGUF: the same with a scale for each 32 weights, and what the codes of a block begin at.
template <int O, int R>
inline void gguf_dots(const Matrix &m, const int64_t *outputs, const Space &space, int64_t row, float (*sums)[ROWS]) {
    const int64_t padded = (m.width + CHUNK - 1) / CHUNK * CHUNK, blocks = m.width / GGUF_BLOCK;
    const int64_t step = padded / GGUF_BLOCK + LANES;
    const bool four = m.kind == GGUF4;
    const int64_t parts = four ? 2 : 1;  // weights of a byte
    const __m512i pattern = four ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)
                                 : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    lanes kept[O][R], begun[O][R];
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) kept[o][r] = begun[o][r] = all(0);
    for (int64_t b = 0; b < blocks; b += LANES) {
        lanes scales[O];
        for (int o = 0; o < O; o++) {
            const int64_t at = outputs[o] * blocks + b, n = std::min(LANES, blocks - b);
            scales[o] = halves((const uint16_t *)m.scales + at, n);
            const lanes least = four ? halves((const uint16_t *)m.other + at, n) : scales[o] * -128.0f;
            for (int r = 0; r < R; r++) begun[o][r] += least * load(space.totals.data() + (row + r) * step + b);
        }
        __m512i index = pattern;
        const int64_t end = std::min(padded, (b + LANES) * GGUF_BLOCK);
        for (int64_t i = b * GGUF_BLOCK; i < end; i += CHUNK, index = _mm512_add_epi32(index, _mm512_set1_epi32(2)))
            for (int o = 0; o < O; o++) {
                const __m512i codes = codes_of(m, outputs[o], i);
                fetch_next((const uint8_t *)m.codes + (outputs[o] * m.width + i) / parts, O, m.width / parts);
                const lanes scale = (lanes)_mm512_permutexvar_ps(index, (__m512)scales[o]);
                for (int r = 0; r < R; r++) {
                    __m512i whole = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes,
                                                        _mm512_loadu_si512(space.high_bytes.data() + (row + r) * padded + i));
                    whole = _mm512_dpbusd_epi32(_mm512_slli_epi32(whole, 8), codes,
                                                _mm512_loadu_si512(space.low_bytes.data() + (row + r) * padded + i));
                    kept[o][r] += (lanes)_mm512_cvtepi32_ps(whole) * scale;
                }
            }
    }
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) sums[o][r] = sum(kept[o][r] + begun[o][r]) * space.steps[row + r];
}

// NF4: a code is looked up as the two bytes of a bfloat16.
template <int O, int R>
inline void nf4_dots(const Matrix &m, const int64_t *outputs, const Space &space, int64_t row, float (*sums)[ROWS]) {
    const __m256i levels = (__m256i)_mm512_cvtneps_pbh((__m512)load((const float *)m.other));
    const __m128i first = _mm256_castsi256_si128(levels), second = _mm256_extracti128_si256(levels, 1);
    const __m128i even = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i odd = _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m512i lower = _mm512_broadcast_i32x4(_mm_unpacklo_epi64(_mm_shuffle_epi8(first, even), _mm_shuffle_epi8(second, even)));
    const __m512i upper = _mm512_broadcast_i32x4(_mm_unpacklo_epi64(_mm_shuffle_epi8(first, odd), _mm_shuffle_epi8(second, odd)));
    __m512 kept[O][R];
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) kept[o][r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < m.width; i += BLOCK)
        for (int o = 0; o < O; o++) {
            const int64_t at = outputs[o] * m.width + i;
            const __m256i both = _mm256_loadu_si256((const __m256i *)((const uint8_t *)m.codes + at / 2));
            fetch_next((const uint8_t *)m.codes + at / 2, O, m.width / 2);
            const __m512i apart = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_srli_epi16(both, 4)), both, 1);
            const __m512i codes = _mm512_and_si512(apart, _mm512_set1_epi8(15));
            const __m512i low = _mm512_shuffle_epi8(lower, codes), high = _mm512_shuffle_epi8(upper, codes);
            const __m512bh u = (__m512bh)_mm512_unpacklo_epi8(low, high), v = (__m512bh)_mm512_unpackhi_epi8(low, high);
            const __m512 scale = _mm512_set1_ps(((const float *)m.scales)[at / BLOCK]);
            for (int r = 0; r < R; r++) {
                const bf16 *x = space.pairs.data() + (row + r) * m.width + i;
                __m512 part = _mm512_dpbf16_ps(_mm512_setzero_ps(), u, (__m512bh)_mm512_loadu_si512(x));
                part = _mm512_dpbf16_ps(part, v, (__m512bh)_mm512_loadu_si512(x + 32));
                kept[o][r] = _mm512_fmadd_ps(part, scale, kept[o][r]);
            }
        }
    for (int o = 0; o < O; o++)
        for (int r = 0; r < R; r++) sums[o][r] = _mm512_reduce_add_ps(kept[o][r]);
}

// Apart, as all that multiply by it would be compiled with a copy of their own.
template <int O, int R>
__attribute__((noinline)) void few_dots(const Matrix &m, const int64_t *outputs, const bf16 *x, int64_t row, const Space &space, float (*sums)[ROWS]) {
    if (m.kind == INT8) return int8_dots<O, R>(m, outputs, space, row, sums);
    if (m.kind == NF4) return nf4_dots<O, R>(m, outputs, space, row, sums);
    if (m.kind != BFLOAT16) return gguf_dots<O, R>(m, outputs, space, row, sums);
    const bf16 *from[O], *to[R];
    for (int o = 0; o < O; o++) from[o] = (const bf16 *)m.codes + outputs[o] * m.width;
    for (int r = 0; r < R; r++) to[r] = x + (row + r) * m.width;
    dots<O, R>(from, to, m.width, sums);
}

// R rows at a time, or the last R, of `rows`; R is 4, or all of fewer.
template <int R, typename Emit>
void product_of(const Matrix &m, const bf16 *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit &emit) {
    const int O = R == 1 ? 4 : 2;
    float tile[FEW * LANES];
    for (int64_t start = first; start < end; start += LANES) {
        const int64_t n = std::min(LANES, end - start);
        for (int64_t o = 0; o < n; o += O) {
            int64_t outputs[O];
            for (int64_t j = 0; j < O; j++) outputs[j] = start + std::min(o + j, n - 1);
            for (int64_t at = 0; at < rows; at += R) {
                const int64_t row = std::min(at, rows - R);
                float sums[O][ROWS];
                few_dots<O, R>(m, outputs, x, row, space, sums);
                for (int r = 0; r < R; r++)
                    for (int64_t j = 0; j < O; j++) tile[(row + r) * LANES + o + j] = sums[j][r];
            }
        }
        send(m, tile, LANES, rows, start, n, emit);
    }
}

template <typename Emit>
void product_few(const Matrix &m, const bf16 *x, int64_t rows, int64_t first, int64_t end, Space &space, Emit emit) {
    if (m.kind == NF4)
        arrange(m, x, rows, space);
    else if (m.kind != BFLOAT16)
        split(m, x, rows, space);
    switch (rows) {
        case 1: return product_of<1>(m, x, rows, first, end, space, emit);
        case 2: return product_of<2>(m, x, rows, first, end, space, emit);
        case 3: return product_of<3>(m, x, rows, first, end, space, emit);
        default: return product_of<4>(m, x, rows, first, end, space, emit);
    }
}
