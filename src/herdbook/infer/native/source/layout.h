// What Python hands over and what every part of the kernels agrees on. `binding.py` mirrors these structures field by field.
//
// Sizes: M rows (new tokens of all sequences), D stream width, H query heads, K key/value heads, E head width, F feed-forward
// width, V vocabulary. "Padded" sizes are rounded up to whole blocks of 32 columns, and what pads is zero.
//
// A matrix (rows x columns) lies in tiles of 16 rows, each tile contiguous, columns in blocks of 32:
//   FLOAT32   [tile][column][16 rows]
//   BFLOAT16  [tile][column / 2][16 rows][2 columns]            one 64-byte register: a pair of columns of 16 rows
//   INT8      [tile][column / 4][16 rows][4 columns]            number + 128, so that it is unsigned
//   INT4      [tile][block][4][16 rows][4 columns]              low half of byte j: columns 4j.., high half: columns 16+4j..
//   scales    [tile][group][16 rows], float16; where there is a least value, [tile][group][2][16 rows]
// so that each lane of a register ends as one output and nothing is summed across lanes.
#pragma once
#include <stddef.h>
#include <stdint.h>

constexpr int TILE = 16;   // rows of a tile of a matrix
constexpr int PART = 32;   // columns of a block; activations get one scale a block
constexpr int PAGE = 16;   // tokens of a block of keys and values: `herdbook.infer.backend.BLOCK`

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };
enum Keys : int32_t { KEYS_FLOAT32 = 0, KEYS_BFLOAT16 = 1, KEYS_INT8 = 2 };
enum Activation : int32_t { SWIGLU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };
enum Positions : int32_t { ROPE = 0, LEARNED = 1, ALIBI = 2 };
enum Shape : int32_t { SEQUENTIAL = 0, ONE_NORM = 1, TWO_NORMS = 2 };

struct Matrix {
  int32_t kind, affine, rows, columns;  // as they are multiplied, not padded; rows 0: there is no such matrix
  int32_t group;                        // columns that share a scale, a multiple of 32
  float gain;                           // what the product is multiplied with in the end; a power of two
  const void* numbers;
  const uint16_t* scales;
  const float* bias;  // padded to whole pairs of tiles, or null
};

struct Norm {
  const float* weight;  // padded; null: no norm here
  const float* bias;    // padded, or null
};

struct Layer {
  Norm attn_norm, ff_norm, q_norm, k_norm;
  Matrix q, k, v, o, gate, up, down;
};

struct Model {
  int32_t width, layers, heads, kv_heads, head_width, ff_width, vocabulary, embed_width;
  int32_t positions, activation, shape, post, rms, rotary_width, interleaved, falcon;
  int32_t keys_kind, exact, threads, pages;
  float eps, clip, rope_factor;  // clip 0: none
  int32_t window;                // keys a query sees at most, itself among them; 0: all
  const float* slopes;           // (H), ALiBi
  const float* frequencies;      // (rotary_width / 2), radians a position
  const float* position_table;   // row of position 0 first, padded columns
  const Layer* layer;
  Matrix embed, head, project_in, project_out;
  Norm embed_norm, norm;
  // Keys [layer][page][K][E made even][16 tokens], values [layer][page][K][16 tokens][E padded to 16]; in bfloat16 keys
  // [...][E / 2][16 tokens][2] and values [...][8][E padded][2 tokens]; the scales of int8 ones [layer][page][K][16 tokens].
  void *keys, *values;
  float *key_scales, *value_scales;
};

struct Step {
  int32_t rows, spans, wanted;
  const int32_t* tokens;     // (rows)
  const int32_t* counts;     // (spans): rows of each
  const int32_t* starts;     // (spans): position of its first row
  const int32_t* tables;     // (spans): where its page numbers begin in `pages`
  const int32_t* pages;
  const int32_t* wanted_rows;  // (wanted)
  float* logits;               // (wanted, logits_stride)
  int64_t logits_stride;       // V rounded up to pairs of tiles
};

static inline int padded(int size) { return (size + PART - 1) / PART * PART; }
