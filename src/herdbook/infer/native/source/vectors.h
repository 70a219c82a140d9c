// Registers of W float32 lanes and what is computed with them, for the instruction set this file is compiled for.
//
// The compilers' vector types carry the arithmetic (`a * b + c` becomes one instruction); intrinsics appear only where there
// is no operator. Everything has internal linkage: the library holds this code several times, once for each instruction set,
// and the linker must never take one for another.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define HB_LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define HB_LANES 8
#else
#define HB_LANES 4
#endif

namespace {

constexpr int W = HB_LANES;
constexpr int PER_TILE = 16 / W;  // registers that hold a value for each row of a tile, or each token of a page

typedef float vf __attribute__((vector_size(4 * HB_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * HB_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * HB_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * HB_LANES)));
typedef int8_t vb __attribute__((vector_size(HB_LANES)));

template <class V> inline V get(const void* from) {
  V value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class V> inline void put(void* to, V value) { memcpy(to, &value, sizeof value); }

inline vf all(float x) { return x - vf{}; }
inline vf load(const float* from) { return get<vf>(from); }
inline void store(float* to, vf value) { put(to, value); }
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf smaller(vf a, vf b) { return a < b ? a : b; }
inline vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

inline float sum(vf x) {
#if HB_LANES == 16
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < W; i++) total += x[i];
  return total;
#endif
}
inline float most(vf x) {
#if HB_LANES == 16
  return _mm512_reduce_max_ps((__m512)x);
#else
  float best = x[0];
  for (int i = 1; i < W; i++) best = x[i] > best ? x[i] : best;
  return best;
#endif
}

// To the nearest integer, even where two are as near: adding 1.5 * 2^23 leaves no bits behind the point.
inline vf rounded(vf x) { return (x + 12582912.0f) - 12582912.0f; }

inline vf bf16_rounded(vf x) {
  vu bits = (vu)x;
  return (vf)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}
inline void store_bf16(uint16_t* to, vf x) {
#if defined(__AVX512BF16__)
  put(to, _mm512_cvtneps_pbh((__m512)x));
#else
  vu bits = (vu)x;
  put(to, __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh));
#endif
}

inline float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  return get<float>(&bits);
}

// float16: shifting its bits into place leaves an exponent that is 112 too small, which a product mends, subnormals too.
inline vf load(const uint16_t* from) {
#if HB_LANES == 16
  return (vf)_mm512_cvtph_ps(get<__m256i>(from));
#elif HB_LANES == 8
  return (vf)_mm256_cvtph_ps(get<__m128i>(from));
#else
  vu bits = __builtin_convertvector(get<vh>(from), vu);
  vf value = (vf)((bits & 0x7fff) << 13) * 0x1p112f;
  return (vf)((vu)value | ((bits & 0x8000) << 16));
#endif
}
inline vf load(const int8_t* from) {
#if HB_LANES == 16
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(get<__m128i>(from)));
#else
  return __builtin_convertvector(__builtin_convertvector(get<vb>(from), vi), vf);
#endif
}

// e^x, 2 units in the last place; 0 below -87.
inline vf exponential(vf x) {
  vf kept = smaller(larger(x, all(-87.0f)), all(88.0f));
  vf n = rounded(kept * 1.44269504f);
  vf r = kept - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  vf power = (vf)((__builtin_convertvector(n, vi) + 127) << 23);
  return x < -87.0f ? all(0.0f) : p * power;
}

inline vf silu(vf x) { return x / (1.0f + exponential(-x)); }
inline vf gelu_tanh(vf x) { return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x))); }
// x * (1 + erf(x / sqrt 2)) / 2 with Abramowitz and Stegun's 7.1.26, off by 1.5e-7 at most.
inline vf gelu(vf x) {
  vf z = magnitude(x) * 0.70710678f;
  vf t = 1.0f / (1.0f + 0.3275911f * z);
  vf p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vf rest = 0.5f * p * t * exponential(-z * z);  // (1 - erf z) / 2
  return x * (x < 0.0f ? rest : 1.0f - rest);
}

}  // namespace
