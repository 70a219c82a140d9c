// Attention of a few queries of one sequence to all its keys, page by page.
//
// Keys lie with the 16 tokens of a page side by side, so that one register holds a value of 16 keys and scores need no sum
// across lanes; values lie token by token. In bfloat16, pairs of a key's values, and of two tokens' values, are neighbours, as
// the dot product of that type wants them. The queries of a group of heads (GQA), and in a prompt those of several tokens,
// share every load of a key or value. The softmax runs along in pieces of CHUNK keys (FlashAttention, arXiv:2205.14135).
#pragma once
#include "layout.h"
#include "vectors.h"

namespace {

constexpr int QUERIES = 16;  // that go along together
constexpr int CHUNK = 128;   // keys of a piece: their keys and values stay in the first-level cache
constexpr int PAGES = CHUNK / PAGE, BEYOND = 4;  // so many pages of the next chunk may be asked for ahead of time

inline int even(int width) { return (width + 1) / 2 * 2; }
inline int to_page(int width) { return (width + PAGE - 1) / PAGE * PAGE; }

// Queries of one sequence that share a key/value head, ready for the dot product (turned, and divided by the root of E).
struct Queries {
  int rows, width;        // width: E made even
  float root;             // 1 / sqrt(E)
  float* query;           // [row][width]
  uint16_t* half_query;   // room for the same in bfloat16
  int first[QUERIES];     // the least key a query sees: 0, or where its window begins
  int position[QUERIES];  // the last one, its own
  float slope[QUERIES];   // ALiBi's; 0: none
  float* mixed;           // out: [row][E padded to 16]
  float* score;           // room for [QUERIES][CHUNK]
  uint16_t* half_score;   // room for the same in bfloat16
};

// What the products below read of queries and scores: bfloat16 where there is an instruction for it and keys are of that type.
#if defined(__AVX512BF16__)
template <class T> struct Read {
  static constexpr bool half = sizeof(T) == 2;
};
#else
template <class T> struct Read {
  static constexpr bool half = false;
};
#endif

// sum += both * (first, second): two columns of bfloat16 for W rows, two numbers of the other factor.
inline vf add_pair(vf sum, vu both, const float* x) {
  sum += (vf)(both << 16) * all(x[0]);
  return sum + (vf)(both & 0xffff0000u) * all(x[1]);
}
inline vf add_pair(vf sum, vu both, const uint16_t* x) {
#if defined(__AVX512BF16__)
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)_mm512_set1_epi32(get<int>(x)));
#else
  float wide[2] = {from_bf16(x[0]), from_bf16(x[1])};
  return add_pair(sum, both, wide);
#endif
}

// score[r][key] of N pages that follow each other in the sequence. Q: float, or bfloat16 as uint16_t.
template <int R, int N, class T, class Q>
void page_scores(const Q* query, int width, const T* const* keys, float* score) {
  vf sums[R][N][PER_TILE];
  for (auto& row : sums)
    for (auto& page : row)
      for (vf& value : page) value = vf{};
  for (int e = 0; e < width; e += 2) {
    for (int n = 0; n < N; n++) __builtin_prefetch(keys[N + n] + e * PAGE);
    for (int n = 0; n < N; n++)
      for (int i = 0; i < PER_TILE; i++) {
        if constexpr (sizeof(T) == 2) {
          vu both = get<vu>(keys[n] + e * PAGE + 2 * i * W);
          for (int r = 0; r < R; r++) sums[r][n][i] = add_pair(sums[r][n][i], both, query + r * width + e);
        } else {
          for (int k = e; k < e + 2; k++) {
            vf key = load(keys[n] + k * PAGE + i * W);
            for (int r = 0; r < R; r++) sums[r][n][i] += key * all(query[r * width + k]);
          }
        }
      }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++)
      for (int i = 0; i < PER_TILE; i++) store(score + r * CHUNK + n * PAGE + i * W, sums[r][n][i]);
}

template <int R, class T, class Q>
void chunk_scores(const Q* query, int width, const T* const* keys, int pages, float* score) {
  // Enough sums under way to keep the multipliers busy, and few enough to stay in registers.
  constexpr int N = W == 16 ? (R <= 2 ? 4 : R <= 4 ? 2 : 1) : R == 1 && W == 8 ? 2 : 1;
  int page = 0;
  for (; page + N <= pages; page += N) page_scores<R, N>(query, width, keys + page, score + page * PAGE);
  for (; page < pages; page++) page_scores<R, 1>(query, width, keys + page, score + page * PAGE);
}

// mixed[r] += sum over the keys of weight[r][key] * value[key], for N registers of the head from `from` on.
template <int R, int N, class T, class Q>
void mix_part(const Q* weight, const T* const* values, int keys, int stride, int from, float* mixed) {
  vf sums[R][N];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < N; i++) sums[r][i] = load(mixed + r * stride + from + i * W);
  for (int key = 0; key < keys; key += 2) {
    const T *page = values[key / PAGE], *next = values[key / PAGE + 1];
    for (int i = 0; i < 2 * N * W; i += 64 / (int)sizeof(T)) __builtin_prefetch(next + key % PAGE * stride + 2 * from + i);
    for (int i = 0; i < N; i++) {
      if constexpr (sizeof(T) == 2) {
        vu both = get<vu>(page + key % PAGE * stride + 2 * (from + i * W));
        for (int r = 0; r < R; r++) sums[r][i] = add_pair(sums[r][i], both, weight + r * CHUNK + key);
      } else {
        for (int k = key; k < key + 2; k++) {
          vf value = load(page + k % PAGE * stride + from + i * W);
          for (int r = 0; r < R; r++) sums[r][i] += value * all(weight[r * CHUNK + k]);
        }
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < N; i++) store(mixed + r * stride + from + i * W, sums[r][i]);
}

template <int R, class T, class Q>
void mix(const Q* weight, const T* const* values, int keys, int stride, float* mixed) {
  constexpr int N = R <= 4 && W == 16 ? 4 : 2;
  int from = 0;
  for (; from + N * W <= stride; from += N * W) mix_part<R, N>(weight, values, keys, stride, from, mixed);
  for (; from < stride; from += W) mix_part<R, 1>(weight, values, keys, stride, from, mixed);
}

// Call `piece.template operator()<R>(row)` over all rows, R at a time.
template <class Piece> void by_rows(int rows, Piece piece) {
  int row = 0;
  if (W == 16)
    for (; row + 8 <= rows; row += 8) piece.template operator()<W == 16 ? 8 : 4>(row);
  for (; row + 4 <= rows; row += 4) piece.template operator()<4>(row);
  if (row + 3 == rows) return piece.template operator()<3>(row);
  if (row + 2 == rows) return piece.template operator()<2>(row);
  if (row + 1 == rows) piece.template operator()<1>(row);
}

template <class T> struct ScorePiece {
  const Queries& q;
  const T* const* keys;
  int pages;
  template <int R> void operator()(int row) const {
    float* to = q.score + row * CHUNK;
    if constexpr (Read<T>::half)
      chunk_scores<R>(q.half_query + row * q.width, q.width, keys, pages, to);
    else
      chunk_scores<R>(q.query + row * q.width, q.width, keys, pages, to);
  }
};

template <class T> struct MixPiece {
  const Queries& q;
  const T* const* values;
  int keys, stride;
  template <int R> void operator()(int row) const {
    float* to = q.mixed + row * stride;
    if constexpr (Read<T>::half)
      mix<R>(q.half_score + row * CHUNK, values, keys, stride, to);
    else
      mix<R>(q.score + row * CHUNK, values, keys, stride, to);
  }
};

// What ALiBi adds to the score of W keys from `key` on: slope times the way back to them. Falcon counts from the beginning,
// in bfloat16, and divides by the root of the head width as if it were part of the score.
inline vf alibi(float slope, int key, int position, bool falcon, float root) {
  vf place;
  for (int i = 0; i < W; i++) place[i] = (float)(key + i);
  if (!falcon) return slope * (place - (float)position);
  return bf16_rounded(bf16_rounded(all(slope)) * bf16_rounded(place)) * root;
}

// Turn the scores of a chunk into weights; `largest` and `added` are what the softmax carries from chunk to chunk.
inline void weigh(const Queries& q, int row, int first, int pages, bool falcon, float* largest, float* added) {
  float* score = q.score + row * CHUNK;
  int stride = to_page(q.width);
  vf lane;
  for (int i = 0; i < W; i++) lane[i] = (float)i;
  vf top = all(-INFINITY);
  for (int key = 0; key < pages * PAGE; key += W) {
    vf s = load(score + key);
    if (q.slope[row] != 0) s += alibi(q.slope[row], first + key, q.position[row], falcon, q.root);
    s = lane > (float)(q.position[row] - first - key) ? all(-INFINITY) : s;
    if (q.first[row] > first + key) s = lane < (float)(q.first[row] - first - key) ? all(-INFINITY) : s;
    store(score + key, s);
    top = larger(top, s);
  }
  float before = *largest, now = most(top);
  if (now < before) now = before;
  if (now == -INFINITY) {  // no key of this chunk is seen by this query
    memset(score, 0, (size_t)pages * PAGE * sizeof(float));
    return;
  }
  vf parts = all(0.0f);
  for (int key = 0; key < pages * PAGE; key += W) {
    vf weight = exponential(load(score + key) - now);
    store(score + key, weight);
    parts += weight;
  }
  vf shrink = before == -INFINITY ? all(0.0f) : exponential(all(before - now));
  *largest = now, *added = *added * shrink[0] + sum(parts);
  float* mixed = q.mixed + row * stride;
  for (int e = 0; e < stride; e += W) store(mixed + e, load(mixed + e) * shrink);
}

// Multiply the scores, or weights, of a chunk with the scales of int8 keys or values.
inline void rescale(const Queries& q, const float* const* scales, int pages) {
  for (int row = 0; row < q.rows; row++)
    for (int page = 0; page < pages; page++)
      for (int i = 0; i < PAGE; i += W) {
        float* at = q.score + row * CHUNK + page * PAGE + i;
        store(at, load(at) * load(scales[page] + i));
      }
}

// One layer's keys and values of one head: where page 0 lies, and how far it is to the next page.
template <class T> struct Store {
  const T *keys, *values;
  const float *key_scales, *value_scales;  // of int8
  size_t key_step, value_step, scale_step;
};

// Where the pages of a chunk lie, and some of those that follow (the last one again where there are none).
template <class T> struct Chunk {
  const T *keys[PAGES + BEYOND], *values[PAGES + BEYOND];
  const float *key_scales[PAGES], *value_scales[PAGES];
  Chunk(const Store<T>& from, const int32_t* table, int first, int pages) {
    for (int page = 0; page < PAGES + BEYOND; page++) {
      size_t number = table[first + page < pages ? first + page : pages - 1];
      keys[page] = from.keys + number * from.key_step, values[page] = from.values + number * from.value_step;
      if (page >= PAGES) continue;
      key_scales[page] = from.key_scales + number * from.scale_step;
      value_scales[page] = from.value_scales + number * from.scale_step;
    }
  }
};

template <class T> void attend(const Queries& q, const Store<T>& from, const int32_t* table, bool falcon) {
  int stride = to_page(q.width), least = q.first[0], seen = 0;
  float largest[QUERIES], added[QUERIES];
  for (int row = 0; row < q.rows; row++) {
    largest[row] = -INFINITY, added[row] = 0;
    if (q.first[row] < least) least = q.first[row];
    if (q.position[row] + 1 > seen) seen = q.position[row] + 1;
  }
  memset(q.mixed, 0, (size_t)q.rows * stride * sizeof(float));
  if (Read<T>::half)
    for (int i = 0; i < q.rows * q.width; i += W) store_bf16(q.half_query + i, load(q.query + i));
  // Chunks begin at multiples of their size whatever is seen, so that a row's sums do not depend on who goes along with it.
  for (int first = least / CHUNK * CHUNK; first < seen; first += CHUNK) {
    int many = seen - first < CHUNK ? seen - first : CHUNK, pages = (many + PAGE - 1) / PAGE;
    Chunk<T> chunk(from, table, first / PAGE, (seen + PAGE - 1) / PAGE);
    by_rows(q.rows, ScorePiece<T>{q, chunk.keys, pages});
    if (sizeof(T) == 1) rescale(q, chunk.key_scales, pages);
    for (int row = 0; row < q.rows; row++) weigh(q, row, first, pages, falcon, largest + row, added + row);
    if (sizeof(T) == 1) rescale(q, chunk.value_scales, pages);
    if (Read<T>::half)
      for (int row = 0; row < q.rows; row++)
        for (int i = row * CHUNK; i < row * CHUNK + pages * PAGE; i += W) store_bf16(q.half_score + i, load(q.score + i));
    by_rows(q.rows, MixPiece<T>{q, chunk.values, many, stride});
  }
  for (int row = 0; row < q.rows; row++)
    for (int e = 0; e < stride; e += W) {
      float* at = q.mixed + row * stride + e;
      store(at, load(at) * (1.0f / added[row]));
    }
}

}  // namespace
