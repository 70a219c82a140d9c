// One step under way: its memory, what the threads share, and the small parts that every layer is made of.
#pragma once
#include <math.h>

#include "attention.h"
#include "layout.h"
#include "pool.h"
#include "products.h"

namespace {

// Memory handed out piece by piece; with no base it only counts.
struct Arena {
  char* base;
  size_t used;
  template <class T> T* take(size_t count) {
    char* at = base + used;
    used += (count * sizeof(T) + 127) / 64 * 64;  // a line more, so that a register may reach past the end
    return reinterpret_cast<T*>(at);
  }
};

// Queries that one thread takes at a time: heads of one group, next to each other, of tokens next to each other.
struct Unit {
  int32_t span, kv_head, first_head, heads, first_row, rows;
};

// What a thread has for itself. With one row all threads normalise it for themselves, which is quicker than waiting.
struct Own {
  Rows stream, second, mixed;
  float *row, *head, *query, *out, *score;
  uint16_t *half_query, *half_score;
};

struct Run {
  const Model* model;
  const Step* step;
  Barrier barrier;
  Counter* counters;
  Unit* units;
  int unit_count, widest;  // widest: floats of the longest row that is normalised or mixed
  bool alone;       // a thread deals with one (span, head) from turning to mixing
  int *span_of, *position_of;
  float *x, *heads, *mixed, *cosines, *sines, *inner, *last;
  size_t x_stride, heads_stride, mixed_stride;
  int key_at, value_at;  // columns of `heads` where keys and values begin
  Rows feed, entry, leave, final;
  Own* own;
};

// A thread's place in a step. All threads pass the same phases in the same order.
struct Thread {
  Run& run;
  int number, phase;
  Own& own;
  const Model& model() const { return *run.model; }
  int threads() const { return run.barrier.threads; }
  void wait() { hb_wait(&run.barrier); }
  Counter* next_phase() { return run.counters + phase++; }
  // Rows that are dealt out evenly: [begin, end).
  int begin(int rows) const { return (int)((int64_t)rows * number / threads()); }
  int end(int rows) const { return (int)((int64_t)rows * (number + 1) / threads()); }
};

inline int take(Counter* counter, int many) { return __atomic_fetch_add(&counter->next, many, __ATOMIC_RELAXED); }

// Root-mean-square or layer norm of `width` values; what pads them must be zero, and so it is afterwards. In place, too.
inline void normalise(const Norm& norm, bool rms, float eps, const float* x, int width, float* out) {
  int whole = padded(width);
  float mean = 0;
  if (!rms) {
    vf total = all(0.0f);
    for (int i = 0; i < whole; i += W) total += load(x + i);
    mean = sum(total) / (float)width;
  }
  vf squares = all(0.0f);
  for (int i = 0; i < whole; i += W) {
    vf d = load(x + i) - mean;
    squares += d * d;
  }
  float variance = (sum(squares) - (float)(whole - width) * mean * mean) / (float)width;
  float factor = 1.0f / sqrtf((variance > 0 ? variance : 0) + eps);
  for (int i = 0; i < whole; i += W) {
    vf y = (load(x + i) - mean) * factor * load(norm.weight + i);
    store(out + i, norm.bias ? y + load(norm.bias + i) : y);
  }
}

// Rows of floats, normalised if `norm` says so, in the forms (`Wants`) that the products with them read.
inline Rows prepared(Thread& t, Rows Own::*slot, const float* x, size_t stride, int rows, int width, const Norm* norm,
                     int wanted) {
  const Model& m = t.model();
  bool each = rows == 1;  // every thread for itself
  Rows to = (each ? &t.own : t.run.own)->*slot;
  to.rows = rows;
  for (int row = each ? 0 : t.begin(rows), end = each ? 1 : t.end(rows); row < end; row++) {
    const float* from = x + row * stride;
    if (norm) normalise(*norm, m.rms, m.eps, from, width, t.own.row), from = t.own.row;
    keep_row(to, wanted, row, from);
  }
  if (!each) t.wait();
  return to;
}

struct Part {
  const Matrix* matrix;
  int column;  // of the output, where its rows begin
};

inline int pairs_of(const Matrix& m) { return padded(m.rows) / PART; }

// Work is dealt out in pieces small enough that a thread that lost its core does not hold up the others for long, and large
// enough that the weights still stream.
inline int piece(const Thread& t, int units, int rows) {
  if (rows > GROUP || t.threads() == 1) return t.threads() == 1 ? units : 1;
  int many = units / (t.threads() * 4);
  return many ? many : 1;
}

// out = rows * matrix^T + bias, or added to out, for several matrices side by side.
inline void product(Thread& t, const Part* parts, int count, const Rows& rows, float* out, size_t stride, bool add) {
  int units = 0;
  for (int i = 0; i < count; i++) units += pairs_of(*parts[i].matrix);
  Counter* counter = t.next_phase();
  int many = piece(t, units, rows.rows);
  bool exact = t.model().exact;
  alignas(64) float got[GROUP * PART];
  for (int from = take(counter, many); from < units; from = take(counter, many))
    for (int unit = from; unit < from + many && unit < units; unit++) {
      const Part* part = parts;
      int pair = unit;
      while (pair >= pairs_of(*part->matrix)) pair -= pairs_of(*part++->matrix);
      const Matrix& m = *part->matrix;
      for (int first = 0; first < rows.rows; first += GROUP) {
        product_pair(m, pair, rows, first, exact, got);
        for (int row = first; row < rows.rows && row < first + GROUP; row++)
          for (int i = 0; i < PART; i += W) {
            float* to = out + row * stride + part->column + pair * PART + i;
            vf y = load(got + (row - first) * PART + i) * m.gain;
            if (m.bias) y += load(m.bias + pair * PART + i);
            store(to, add ? y + load(to) : y);
          }
      }
    }
}

inline vf activated(int activation, vf x) {
  switch (activation) {
    case SWIGLU: return silu(x);
    case GELU: return gelu(x);
    case GELU_TANH: return gelu_tanh(x);
    default: return larger(x, all(0.0f));
  }
}

// The first half of the feed-forward part: act(up x), or silu(gate x) * up x, kept at once in the form that `down` reads.
inline void feed_in(Thread& t, const Layer& layer, const Rows& rows, const Rows& feed) {
  const Model& m = t.model();
  int units = pairs_of(layer.up), many = piece(t, units, rows.rows), wanted = wants(layer.down, m.exact);
  Counter* counter = t.next_phase();
  alignas(64) float up[GROUP * PART], gate[GROUP * PART];
  for (int from = take(counter, many); from < units; from = take(counter, many))
    for (int unit = from; unit < from + many && unit < units; unit++)
      for (int first = 0; first < rows.rows; first += GROUP) {
        product_pair(layer.up, unit, rows, first, m.exact, up);
        if (layer.gate.rows) product_pair(layer.gate, unit, rows, first, m.exact, gate);
        for (int row = first; row < rows.rows && row < first + GROUP; row++) {
          float* at = up + (row - first) * PART;
          for (int i = 0; i < PART; i += W) {
            vf y = load(at + i) * layer.up.gain;
            if (layer.up.bias) y += load(layer.up.bias + unit * PART + i);
            if (layer.gate.rows) {
              vf z = load(gate + (row - first) * PART + i) * layer.gate.gain;
              if (layer.gate.bias) z += load(layer.gate.bias + unit * PART + i);
              y *= silu(z);
            } else {
              y = activated(m.activation, y);
            }
            store(at + i, y);
          }
          keep_block(feed, wanted, row, unit, at);
        }
      }
}

}  // namespace
