// Products of a few rows of activations with two tiles (32 rows) of a matrix: out[t][r] = sum_k weight[r][k] * x[t][k].
//
// T is how many rows of activations go along; the weights are unpacked once for all of them. The order in which the parts of a
// sum are added does not depend on T, so that a row gets the same bits alone and in company.
#pragma once
#include "activations.h"

namespace {

// How far ahead of its use a weight is asked for. Measured on Zen 4 and Zen 5; half or double of it costs some percent.
constexpr int AHEAD_INT4 = 1536, AHEAD_INT8 = 3072, AHEAD_BF16 = 4096;

inline void ask(const void* address, int ahead) { __builtin_prefetch(static_cast<const char*>(address) + ahead); }

// Sums of one tile while it is being multiplied: for each row of activations a value for each of the 16 rows of weights.
template <int T> struct Sums {
  vf of[T][PER_TILE];
  Sums() {
    for (auto& row : of)
      for (vf& value : row) value = vf{};
  }
  void out(float* to) const {  // to[t * 32 + r]
    for (int t = 0; t < T; t++)
      for (int i = 0; i < PER_TILE; i++) store(to + t * PART + i * W, of[t][i]);
  }
};

inline const uint16_t* scales_of(const Matrix& m, int tile) {
  int groups = padded(m.columns) / m.group;
  return m.scales + (size_t)tile * groups * TILE * (m.affine ? 2 : 1);
}

// The weights of 32 columns of a tile written out, [column][16 rows], at the scale of the matrix (its gain comes later).
inline void written_out(const Matrix& m, int tile, int block, float* to) {
  size_t at = ((size_t)tile * (padded(m.columns) / PART) + block) * PART * TILE;
  if (m.kind == FLOAT32) {
    memcpy(to, static_cast<const float*>(m.numbers) + at, PART * TILE * sizeof(float));
  } else if (m.kind == BFLOAT16) {
    const auto* from = static_cast<const uint16_t*>(m.numbers) + at;
    for (int k = 0; k < PART; k++)
      for (int r = 0; r < TILE; r++) {
        uint32_t bits = (uint32_t)from[(k / 2 * TILE + r) * 2 + k % 2] << 16;
        memcpy(to + k * TILE + r, &bits, 4);
      }
  } else {
    const uint16_t* scales = scales_of(m, tile) + (size_t)(block * PART / m.group) * TILE * (m.affine ? 2 : 1);
    float scale[TILE], least[TILE];
    for (int i = 0; i < TILE; i += W) {
      store(scale + i, load(scales + i));
      store(least + i, m.affine ? load(scales + TILE + i) : vf{});
    }
    int zero = m.kind == INT8 ? 128 : m.affine ? 0 : 8;
    const auto* from = static_cast<const uint8_t*>(m.numbers) + (m.kind == INT8 ? at : at / 2);
    for (int k = 0; k < PART; k++)
      for (int r = 0; r < TILE; r++) {
        int byte = m.kind == INT8 ? from[(k / 4 * TILE + r) * 4 + k % 4] : from[(k / 4 % 4 * TILE + r) * 4 + k % 4];
        int number = m.kind == INT8 ? byte : k < 16 ? byte & 15 : byte >> 4;
        to[k * TILE + r] = (float)(number - zero) * scale[r] + least[r];
      }
  }
}

// float32 activations, weights of any kind: what has no better instruction, and the exact mode.
template <int T> void product_float(const Matrix& m, int tile, const float* x, float* out) {
  Sums<T> sums;
  alignas(64) float weights[PART * TILE];
  for (int block = 0, blocks = padded(m.columns) / PART; block < blocks; block++, x += T * PART) {
    written_out(m, tile, block, weights);
    for (int k = 0; k < PART; k++)
      for (int i = 0; i < PER_TILE; i++) {
        vf weight = load(weights + k * TILE + i * W);
        for (int t = 0; t < T; t++) sums.of[t][i] += weight * all(x[t * PART + k]);
      }
  }
  sums.out(out);
}

// float32 activations, bfloat16 weights, straight from their pairs.
template <int T> void product_bf16_float(const Matrix& m, int tile, const float* x, float* out) {
  Sums<T> sums;
  int columns = padded(m.columns);
  const auto* from = static_cast<const uint16_t*>(m.numbers) + (size_t)tile * columns * TILE;
  for (int column = 0; column < columns; column += PART, x += T * PART)
    for (int k = 0; k < PART; k += 2, from += 2 * TILE) {
      ask(from, AHEAD_BF16);
      for (int i = 0; i < PER_TILE; i++) {
        vu pair = get<vu>(from + 2 * i * W);
        vf even = (vf)(pair << 16), odd = (vf)(pair & 0xffff0000u);
        for (int t = 0; t < T; t++) {
          sums.of[t][i] += even * all(x[t * PART + k]);
          sums.of[t][i] += odd * all(x[t * PART + k + 1]);
        }
      }
    }
  sums.out(out);
}

#if defined(__AVX512BF16__)
// Both tiles at once: one row alone would leave the unit waiting for its own last sum.
template <int T> void product_bf16(const Matrix& m, int tile, const uint16_t* x, float* out) {
  __m512 sums[2][T];
  for (int t = 0; t < T; t++) sums[0][t] = sums[1][t] = _mm512_setzero_ps();
  size_t columns = padded(m.columns);
  const auto* first = static_cast<const uint16_t*>(m.numbers) + tile * columns * TILE;
  const auto* second = first + columns * TILE;
  for (size_t column = 0; column < columns; column += PART, x += T * PART)
    for (int k = 0; k < PART; k += 2, first += 2 * TILE, second += 2 * TILE) {
      ask(first, AHEAD_BF16), ask(second, AHEAD_BF16);
      auto a = (__m512bh)_mm512_load_si512(first), b = (__m512bh)_mm512_load_si512(second);
      for (int t = 0; t < T; t++) {
        auto pair = (__m512bh)_mm512_set1_epi32(get<int>(x + t * PART + k));
        sums[0][t] = _mm512_dpbf16_ps(sums[0][t], a, pair);
        sums[1][t] = _mm512_dpbf16_ps(sums[1][t], b, pair);
      }
    }
  for (int t = 0; t < T; t++)
    _mm512_storeu_ps(out + t * PART, sums[0][t]), _mm512_storeu_ps(out + t * PART + TILE, sums[1][t]);
}
#endif

// Sums of 32 products of unsigned weights and int8 activations, as int32 for 16 rows of weights; minus the zero point of the
// weights times the sum of the activations, which `minus` holds. An affine matrix of 4 bits has its zero at zero.
#if HB_LANES == 16
template <int BITS> struct Block {
  __m512i of[8];
  explicit Block(const uint8_t* from) {
    if (BITS == 8) {
      for (int j = 0; j < 8; j++) of[j] = _mm512_load_si512(from + 64 * j), ask(from + 64 * j, AHEAD_INT8);
      return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
      __m512i both = _mm512_load_si512(from + 64 * j);
      ask(from + 64 * j, AHEAD_INT4);
      of[j] = _mm512_and_si512(both, low), of[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
  }
  template <int SHIFT> void times(const int8_t* x, int32_t minus, vf* out) const {
    __m512i a = SHIFT ? _mm512_slli_epi32(_mm512_set1_epi32(minus), SHIFT) : _mm512_setzero_si512();
    __m512i b = _mm512_setzero_si512();
    for (int j = 0; j < 8; j += 2) {
      a = _mm512_dpbusd_epi32(a, of[j], _mm512_set1_epi32(get<int>(x + 4 * j)));
      b = _mm512_dpbusd_epi32(b, of[j + 1], _mm512_set1_epi32(get<int>(x + 4 * j + 4)));
    }
    out[0] = (vf)_mm512_cvtepi32_ps(_mm512_add_epi32(a, b));
  }
};
#elif HB_LANES == 8
template <int BITS> struct Block {
  const uint8_t* from;
  explicit Block(const uint8_t* at) : from(at) {
    for (int j = 0; j < BITS * 64; j += 64) ask(from + j, BITS == 8 ? AHEAD_INT8 : AHEAD_INT4);
  }
  template <int SHIFT> void times(const int8_t* x, int32_t minus, vf* out) const {
    for (int i = 0; i < 2; i++) {
      __m256i total = _mm256_set1_epi32(SHIFT ? minus * (1 << SHIFT) : 0);
      __m256i pairs = _mm256_setzero_si256();
      for (int j = 0; j < 8; j++) {
        __m256i four = _mm256_set1_epi32(get<int>(x + 4 * j));
        if (BITS == 4) {  // eight sums of two products, 15 * 127 each at most, stay within 16 bits
          __m256i both = get<__m256i>(from + 64 * (j % 4) + 32 * i);
          __m256i number = _mm256_and_si256(j < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(number, four));
        } else {  // 255 * 127 twice would not: even and odd columns, widened to 16 bits
          __m256i number = get<__m256i>(from + 64 * j + 32 * i);
          __m256i even = _mm256_and_si256(number, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(number, 8);
          __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), x_odd = _mm256_srai_epi16(four, 8);
          total = _mm256_add_epi32(total, _mm256_madd_epi16(even, x_even));
          total = _mm256_add_epi32(total, _mm256_madd_epi16(odd, x_odd));
        }
      }
      if (BITS == 4) total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      out[i] = (vf)_mm256_cvtepi32_ps(total);
    }
  }
};
#else
template <int BITS> struct Block {
  const uint8_t* from;
  explicit Block(const uint8_t* at) : from(at) {}
  template <int SHIFT> void times(const int8_t* x, int32_t minus, vf* out) const {
    int32_t total[TILE];
    for (int r = 0; r < TILE; r++) total[r] = SHIFT ? minus * (1 << SHIFT) : 0;
    for (int j = 0; j < 8; j++)
      for (int r = 0; r < TILE; r++)
        for (int b = 0; b < 4; b++) {
          int byte = from[((BITS == 4 ? j % 4 : j) * TILE + r) * 4 + b];
          total[r] += (BITS == 8 ? byte : j < 4 ? byte & 15 : byte >> 4) * x[4 * j + b];
        }
    for (int i = 0; i < PER_TILE; i++) out[i] = __builtin_convertvector(get<vi>(total + i * W), vf);
  }
};
#endif

template <int T, int BITS, bool AFFINE>
void product_int(const Matrix& m, int tile, const Rows& rows, size_t begin, float* out) {
  constexpr int SHIFT = BITS == 8 ? 7 : AFFINE ? 0 : 3;  // the zero point is 2 to this
  Sums<T> sums;
  int columns = padded(m.columns), per_group = m.group / PART;
  const auto* from = static_cast<const uint8_t*>(m.numbers) + (size_t)tile * columns * TILE * BITS / 8;
  const uint16_t* scales = scales_of(m, tile);
  const int8_t* x = rows.small + begin * PART;
  const float *scale = rows.scale + begin, *total = rows.total + begin;
  const int32_t* minus = rows.minus + begin;
  for (int group = columns / m.group; group; group--, scales += TILE * (AFFINE ? 2 : 1)) {
    vf weight_scale[PER_TILE], least[PER_TILE];
    for (int i = 0; i < PER_TILE; i++) {
      weight_scale[i] = load(scales + i * W);
      if (AFFINE) least[i] = load(scales + TILE + i * W);
    }
    for (int part = per_group; part; part--, from += PART * TILE * BITS / 8) {
      Block<BITS> block(from);
      for (int t = 0; t < T; t++) {
        vf number[PER_TILE];
        block.template times<SHIFT>(x + t * PART, minus[t], number);
        for (int i = 0; i < PER_TILE; i++) {
          sums.of[t][i] += number[i] * weight_scale[i] * all(scale[t]);
          if (AFFINE) sums.of[t][i] += least[i] * all(total[t]);
        }
      }
      x += T * PART, scale += T, total += T, minus += T;
    }
  }
  sums.out(out);
}

// out[t * 32 + r] for rows `first`... of the activations, and tiles 2 * pair and 2 * pair + 1 of the matrix.
template <int T> void product_pair(const Matrix& m, int pair, const Rows& rows, int first, bool exact, float* out) {
  size_t begin = rows.begin(first);
  int form = wants(m, exact);
#if defined(__AVX512BF16__)
  if (form == WANT_BF16) return product_bf16<T>(m, 2 * pair, rows.half + begin * PART, out);
#endif
  for (int tile = 2 * pair; tile < 2 * pair + 2; tile++, out += TILE) {
    if (form == WANT_FLOAT) {
      const float* x = rows.full + begin * PART;
      m.kind == BFLOAT16 ? product_bf16_float<T>(m, tile, x, out) : product_float<T>(m, tile, x, out);
    } else if (m.kind == INT8) {
      m.affine ? product_int<T, 8, true>(m, tile, rows, begin, out) : product_int<T, 8, false>(m, tile, rows, begin, out);
    } else {
      m.affine ? product_int<T, 4, true>(m, tile, rows, begin, out) : product_int<T, 4, false>(m, tile, rows, begin, out);
    }
  }
}

inline void product_pair(const Matrix& m, int pair, const Rows& rows, int first, bool exact, float* out) {
  switch (rows.size(first)) {
    case 1: return product_pair<1>(m, pair, rows, first, exact, out);
    case 2: return product_pair<2>(m, pair, rows, first, exact, out);
    case 3: return product_pair<3>(m, pair, rows, first, exact, out);
    case 4: return product_pair<4>(m, pair, rows, first, exact, out);
#if HB_LANES == 16
    case 6: return product_pair<6>(m, pair, rows, first, exact, out);
    case 8: return product_pair<8>(m, pair, rows, first, exact, out);
    case 12: return product_pair<12>(m, pair, rows, first, exact, out);
#endif
  }
}

// One row of a matrix written out, with its gain: what an embedding table is for.
inline void matrix_row(const Matrix& m, int row, float* to) {
  alignas(64) float weights[PART * TILE];
  for (int block = 0, blocks = padded(m.columns) / PART; block < blocks; block++) {
    written_out(m, row / TILE, block, weights);
    for (int k = 0; k < PART; k++) to[block * PART + k] = weights[k * TILE + row % TILE] * m.gain;
  }
}

}  // namespace
