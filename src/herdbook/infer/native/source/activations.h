// Activations as the products want them: in int8 with a scale every 32, in bfloat16, or in float32.
//
// Rows are grouped by up to GROUP, which is how many a product takes in one pass over a tile of weights; the columns of a group
// lie block after block, so that a product reads from front to back. A last, smaller group is as long as the next size that a
// product is compiled for; what stands in the rows beyond is computed and thrown away.
#pragma once
#include "layout.h"
#include "vectors.h"

namespace {

#if HB_LANES == 16
constexpr int GROUP = 12;  // with 12 rows, 8 registers of weights and their scales, the 32 registers are full
#else
constexpr int GROUP = 4;
#endif

inline int group_size(int rows) {
  constexpr int sizes[] = {1, 2, 3, 4, 6, 8};
  for (int size : sizes)
    if (rows <= size && size <= GROUP) return size;
  return GROUP;
}

// What a product with a matrix reads of its activations.
enum Wants { WANT_INT8 = 1, WANT_BF16 = 2, WANT_FLOAT = 4 };

inline int wants(const Matrix& matrix, bool exact) {
  if (!matrix.rows) return 0;
  if (exact || matrix.kind == FLOAT32) return WANT_FLOAT;
  if (matrix.kind == BFLOAT16) {
#if defined(__AVX512BF16__)
    return WANT_BF16;
#else
    return WANT_FLOAT;
#endif
  }
  return WANT_INT8;
}

struct Rows {
  int rows, blocks;  // blocks of 32 columns
  int8_t* small;     // [group][block][row][32]
  float* scale;      // [group][block][row]; so are the two below
  int32_t* minus;    // minus the sum of the 32 int8
  float* total;      // their sum times the scale
  uint16_t* half;    // bfloat16, [group][block][row][32]
  float* full;

  // Where block 0 of the group of row `first` begins, counted in blocks of one row.
  size_t begin(int first) const { return (size_t)first * blocks; }
  int size(int first) const { return group_size(rows - first < GROUP ? rows - first : GROUP); }
  size_t place(int row, int block) const {
    int first = row / GROUP * GROUP;
    return begin(first) + (size_t)block * size(first) + (row - first);
  }
};

// Blocks of all rows and of what pads the last group, in whole cache lines of scales.
inline size_t rows_blocks(int rows, int blocks) { return ((size_t)(rows + GROUP) * blocks + 15) / 16 * 16; }
inline size_t rows_bytes(int rows, int blocks) { return rows_blocks(rows, blocks) * (PART * (1 + 2 + 4) + 3 * 4); }

// A `Rows` in memory that has `rows_bytes`, 64-byte aligned.
inline Rows rows_at(void* memory, int rows, int blocks) {
  size_t n = rows_blocks(rows, blocks);
  auto* at = static_cast<char*>(memory);
  Rows out;
  out.rows = rows, out.blocks = blocks;
  out.small = reinterpret_cast<int8_t*>(at), at += n * PART;
  out.half = reinterpret_cast<uint16_t*>(at), at += n * PART * 2;
  out.full = reinterpret_cast<float*>(at), at += n * PART * 4;
  out.scale = reinterpret_cast<float*>(at), at += n * 4;
  out.minus = reinterpret_cast<int32_t*>(at), at += n * 4;
  out.total = reinterpret_cast<float*>(at);
  return out;
}

inline void keep_int8(const Rows& to, size_t place, const float* x) {
  vf top = all(0.0f);
  for (int i = 0; i < PART; i += W) top = larger(top, magnitude(load(x + i)));
  float amax = most(top), inverse = amax > 1e-30f ? 127.0f / amax : 0.0f;
  vi added = {};
  for (int i = 0; i < PART; i += W) {
    vi number = __builtin_convertvector(rounded(load(x + i) * inverse), vi);
    added += number;
    put(to.small + place * PART + i, __builtin_convertvector(number, vb));
  }
  float number = sum(__builtin_convertvector(added, vf)), scale = amax / 127.0f;
  to.scale[place] = scale, to.minus[place] = -(int32_t)number, to.total[place] = scale * number;
}

// Keep 32 values of one row, in each of the wanted forms.
inline void keep_block(const Rows& to, int wanted, int row, int block, const float* x) {
  size_t place = to.place(row, block);
  if (wanted & WANT_INT8) keep_int8(to, place, x);
  if (wanted & WANT_BF16)
    for (int i = 0; i < PART; i += W) store_bf16(to.half + place * PART + i, load(x + i));
  if (wanted & WANT_FLOAT) memcpy(to.full + place * PART, x, PART * sizeof(float));
}

inline void keep_row(const Rows& to, int wanted, int row, const float* x) {
  for (int block = 0; block < to.blocks; block++) keep_block(to, wanted, row, block, x + block * PART);
}

}  // namespace
