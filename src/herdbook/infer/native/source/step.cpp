// A whole step, from tokens to logits, in one call. Compiled once for each instruction set; `HB_STEP` names the function.
#include <stdlib.h>

#include "run.h"

namespace {

constexpr int WIDEST = 1024 + 16;  // head, and a register that reaches past it

template <class T> struct Cache {
  const Model& m;
  int layer;
  size_t key_page() const { return (size_t)even(m.head_width) * PAGE; }
  size_t value_page() const { return (size_t)to_page(m.head_width) * PAGE; }
  size_t at(int page, int head) const { return ((size_t)layer * m.pages + page) * m.kv_heads + head; }

  Store<T> of(int head) const {
    const T* keys = static_cast<const T*>(m.keys) + at(0, head) * key_page();
    const T* values = static_cast<const T*>(m.values) + at(0, head) * value_page();
    size_t step = sizeof(T) == 1 ? (size_t)m.kv_heads * PAGE : 0;
    const float* key_scales = step ? m.key_scales + at(0, head) * PAGE : nullptr;
    const float* value_scales = step ? m.value_scales + at(0, head) * PAGE : nullptr;
    return {keys, values, key_scales, value_scales, m.kv_heads * key_page(), m.kv_heads * value_page(), step};
  }

  // Keep one token's key and value of a head; both are padded with zeros to whole registers.
  void keep(int page, int head, int place, const float* key, const float* value) const {
    alignas(64) T line[WIDEST];
    size_t here = at(page, head), scale_at = here * PAGE + place;
    T* keys = static_cast<T*>(m.keys) + here * key_page();
    narrow(key, even(m.head_width), line, m.key_scales, scale_at);
    constexpr bool pairs = sizeof(T) == 2;
    for (int e = 0; e < even(m.head_width); e++)
      keys[pairs ? (e / 2 * PAGE + place) * 2 + e % 2 : e * PAGE + place] = line[e];
    int stride = to_page(m.head_width);
    T* values = static_cast<T*>(m.values) + here * value_page();
    narrow(value, stride, line, m.value_scales, scale_at);
    for (int e = 0; e < stride; e++)
      values[pairs ? (place / 2 * stride + e) * 2 + place % 2 : place * stride + e] = line[e];
  }

  static void narrow(const float* x, int width, float* to, float*, size_t) { memcpy(to, x, width * sizeof(float)); }
  static void narrow(const float* x, int width, uint16_t* to, float*, size_t) {
    for (int e = 0; e < width; e += W) store_bf16(to + e, load(x + e));
  }
  static void narrow(const float* x, int width, int8_t* to, float* scales, size_t scale_at) {
    float top = 0;
    for (int e = 0; e < width; e++) top = fabsf(x[e]) > top ? fabsf(x[e]) : top;
    float inverse = top > 1e-30f ? 127.0f / top : 0.0f;
    for (int e = 0; e < width; e++) to[e] = (int8_t)lrintf(x[e] * inverse);
    scales[scale_at] = top / 127.0f;
  }
};

// Turn pairs of the first values of a head by the row's angles: halves, or neighbours when `interleaved`.
void turn(const Model& m, const float* cosine, const float* sine, float* head) {
  int half = m.rotary_width / 2, apart = m.interleaved ? 1 : half, step = m.interleaved ? 2 : 1;
  for (int i = 0; i < half; i++) {
    float left = head[i * step], right = head[i * step + apart];
    head[i * step] = left * cosine[i] - right * sine[i];
    head[i * step + apart] = right * cosine[i] + left * sine[i];
  }
}

// Clip, normalise and turn one head's query or key (or only clip its value), into `to`, padded with zeros.
void make_head(Thread& t, int row, const float* from, const Norm* norm, bool turned, float* to) {
  const Model& m = t.model();
  int width = m.head_width;
  memcpy(to, from, width * sizeof(float));
  memset(to + width, 0, (padded(width) - width) * sizeof(float));
  if (m.clip > 0)
    for (int e = 0; e < width; e++) to[e] = to[e] > m.clip ? m.clip : to[e] < -m.clip ? -m.clip : to[e];
  if (norm && norm->weight) normalise(*norm, m.rms, m.eps, to, width, to);
  size_t angles = (size_t)row * (m.rotary_width / 2);
  if (turned && m.rotary_width) turn(m, t.run.cosines + angles, t.run.sines + angles, to);
}

// Make the queries of a group ready, in place, and keep the row's key and value.
template <class T> void make_heads(Thread& t, int layer_number, int row, int kv_head) {
  const Model& m = t.model();
  const Layer& layer = m.layer[layer_number];
  const Step& step = *t.run.step;
  int width = m.head_width, group = m.heads / m.kv_heads;
  float *heads = t.run.heads + row * t.run.heads_stride, *made = t.own.head, *value = made + padded(width);
  float root = 1.0f / sqrtf((float)width);
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
    make_head(t, row, heads + head * width, &layer.q_norm, true, made);
    for (int e = 0; e < width; e++) heads[head * width + e] = made[e] * root;
  }
  make_head(t, row, heads + t.run.key_at + kv_head * width, &layer.k_norm, true, made);
  make_head(t, row, heads + t.run.value_at + kv_head * width, nullptr, false, value);
  int position = t.run.position_of[row], table = step.tables[t.run.span_of[row]];
  Cache<T>{m, layer_number}.keep(step.pages[table + position / PAGE], kv_head, position % PAGE, made, value);
}

template <class T> void attend_unit(Thread& t, int layer, const Unit& unit) {
  const Model& m = t.model();
  int width = m.head_width, stride = to_page(width);
  Queries q;
  q.rows = unit.rows * unit.heads, q.width = even(width), q.root = 1.0f / sqrtf((float)width);
  q.query = t.own.query, q.mixed = t.own.out, q.score = t.own.score;
  q.half_query = t.own.half_query, q.half_score = t.own.half_score;
  for (int i = 0; i < q.rows; i++) {
    int row = unit.first_row + i / unit.heads, head = unit.first_head + i % unit.heads;
    q.query[(i + 1) * q.width - 1] = 0;
    memcpy(q.query + i * q.width, t.run.heads + row * t.run.heads_stride + head * width, width * sizeof(float));
    q.position[i] = t.run.position_of[row];
    q.first[i] = m.window && q.position[i] >= m.window ? q.position[i] - m.window + 1 : 0;
    q.slope[i] = m.positions == ALIBI ? m.slopes[head] : 0.0f;
  }
  attend(q, Cache<T>{m, layer}.of(unit.kv_head), t.run.step->pages + t.run.step->tables[unit.span], m.falcon);
  for (int i = 0; i < q.rows; i++) {
    int row = unit.first_row + i / unit.heads, head = unit.first_head + i % unit.heads;
    memcpy(t.run.mixed + row * t.run.mixed_stride + head * width, q.mixed + i * stride, width * sizeof(float));
  }
}

template <class T> void attention(Thread& t, int layer) {
  Run& run = t.run;
  int kv_heads = t.model().kv_heads;
  if (!run.alone) {
    for (int i = t.begin(run.step->rows * kv_heads); i < t.end(run.step->rows * kv_heads); i++)
      make_heads<T>(t, layer, i / kv_heads, i % kv_heads);
    t.wait();
  }
  Counter* counter = t.next_phase();
  for (int i = take(counter, 1); i < run.unit_count; i = take(counter, 1)) {
    const Unit& unit = run.units[i];
    if (run.alone) make_heads<T>(t, layer, unit.first_row, unit.kv_head);
    attend_unit<T>(t, layer, unit);
  }
}

void attention_of(Thread& t, int layer) {
  switch (t.model().keys_kind) {
    case KEYS_FLOAT32: return attention<float>(t, layer);
    case KEYS_BFLOAT16: return attention<uint16_t>(t, layer);
    default: return attention<int8_t>(t, layer);
  }
}

void norm_in_place(Thread& t, const Norm& norm, float* x, size_t stride, int rows) {
  const Model& m = t.model();
  for (int row = t.begin(rows); row < t.end(rows); row++)
    normalise(norm, m.rms, m.eps, x + row * stride, m.width, x + row * stride);
  t.wait();
}

// Behind the last attention only the rows whose logits are wanted go on: move them to the front. How many they are.
int keep_wanted(Thread& t) {
  Run& run = t.run;
  const Step& step = *run.step;
  if (t.number == 0)
    for (int i = 0; i < step.wanted; i++) {
      size_t row = step.wanted_rows[i];  // ascending, so that none is overwritten before it is moved
      memmove(run.x + i * run.x_stride, run.x + row * run.x_stride, run.x_stride * sizeof(float));
      memmove(run.mixed + i * run.mixed_stride, run.mixed + row * run.mixed_stride, run.mixed_stride * sizeof(float));
    }
  t.wait();
  return step.wanted;
}

void run_layer(Thread& t, int number) {
  Run& run = t.run;
  const Model& m = t.model();
  const Layer& layer = m.layer[number];
  int rows = run.step->rows, inner = wants(layer.up, m.exact) | wants(layer.gate, m.exact);
  int outer = wants(layer.q, m.exact) | wants(layer.k, m.exact) | wants(layer.v, m.exact);
  const Norm* before = m.post ? nullptr : &layer.attn_norm;
  int forms = m.shape == ONE_NORM ? outer | inner : outer;
  const Rows read = prepared(t, &Own::stream, run.x, run.x_stride, rows, m.width, before, forms);
  if (m.shape == ONE_NORM) feed_in(t, layer, read, run.feed);
  if (m.shape == TWO_NORMS)
    feed_in(t, layer, prepared(t, &Own::second, run.x, run.x_stride, rows, m.width, &layer.ff_norm, inner), run.feed);
  const Part qkv[] = {{&layer.q, 0}, {&layer.k, run.key_at}, {&layer.v, run.value_at}};
  product(t, qkv, 3, read, run.heads, run.heads_stride, false);
  t.wait();
  attention_of(t, number);
  t.wait();
  if (number + 1 == m.layers && m.shape == SEQUENTIAL) rows = keep_wanted(t);
  Rows feed = run.feed;
  feed.rows = rows;
  const Part out = {&layer.o, 0}, down = {&layer.down, 0};
  int mixed = wants(layer.o, m.exact), width = m.heads * m.head_width;
  const Rows seen = prepared(t, &Own::mixed, run.mixed, run.mixed_stride, rows, width, nullptr, mixed);
  product(t, &out, 1, seen, run.x, run.x_stride, true);
  t.wait();
  if (m.post) norm_in_place(t, layer.attn_norm, run.x, run.x_stride, rows);
  if (m.shape == SEQUENTIAL) {
    before = m.post ? nullptr : &layer.ff_norm;
    feed_in(t, layer, prepared(t, &Own::stream, run.x, run.x_stride, rows, m.width, before, inner), feed);
    t.wait();
  }
  product(t, &down, 1, feed, run.x, run.x_stride, true);
  t.wait();
  if (m.post) norm_in_place(t, layer.ff_norm, run.x, run.x_stride, rows);
}

// The stream before the first layer: embedding, learned positions, norm; and the angles of all rows.
void enter(Thread& t) {
  Run& run = t.run;
  const Model& m = t.model();
  const Step& step = *run.step;
  int rows = step.rows, half = m.rotary_width / 2;
  for (int row = t.begin(rows); row < t.end(rows); row++) {
    for (int i = 0; i < half; i++) {
      float angle = (float)run.position_of[row] / m.rope_factor * m.frequencies[i];
      run.cosines[row * half + i] = cosf(angle), run.sines[row * half + i] = sinf(angle);
    }
    float* to = m.project_in.rows ? t.own.row : run.x + row * run.x_stride;
    matrix_row(m.embed, step.tokens[row], to);
    if (m.project_in.rows) keep_row(run.entry, wants(m.project_in, m.exact), row, to);
  }
  if (m.project_in.rows) {
    t.wait();
    const Part in = {&m.project_in, 0};
    product(t, &in, 1, run.entry, run.x, run.x_stride, false);
    t.wait();
  }
  for (int row = t.begin(rows); row < t.end(rows); row++) {
    float* x = run.x + row * run.x_stride;
    if (m.positions == LEARNED)
      for (size_t i = 0; i < run.x_stride; i++) x[i] += m.position_table[run.position_of[row] * run.x_stride + i];
    if (m.embed_norm.weight) normalise(m.embed_norm, m.rms, m.eps, x, m.width, x);
  }
  t.wait();
}

// Logits of the rows that are wanted.
void leave(Thread& t) {
  Run& run = t.run;
  const Model& m = t.model();
  const Step& step = *run.step;
  const Rows& first = m.project_out.rows ? run.leave : run.final;
  int form = wants(m.project_out.rows ? m.project_out : m.head, m.exact);
  for (int i = t.begin(step.wanted); i < t.end(step.wanted); i++) {
    const float* x = run.x + (m.shape == SEQUENTIAL ? i : step.wanted_rows[i]) * run.x_stride;
    if (m.norm.weight) normalise(m.norm, m.rms, m.eps, x, m.width, t.own.row), x = t.own.row;
    keep_row(first, form, i, x);
  }
  t.wait();
  if (m.project_out.rows) {
    const Part out = {&m.project_out, 0};
    size_t stride = padded(m.embed_width);
    product(t, &out, 1, run.leave, run.last, stride, false);
    t.wait();
    for (int i = t.begin(step.wanted); i < t.end(step.wanted); i++)
      keep_row(run.final, wants(m.head, m.exact), i, run.last + i * stride);
    t.wait();
  }
  const Part head = {&m.head, 0};
  product(t, &head, 1, run.final, step.logits, step.logits_stride, false);
}

void work(void* what, int number) {
  Run& run = *static_cast<Run*>(what);
  Thread t = {run, number, 0, run.own[number]};
  enter(t);
  for (int layer = 0; layer < run.model->layers; layer++) run_layer(t, layer);
  if (run.step->wanted) leave(t);
}

Rows take_rows(Arena& arena, int rows, int width) {
  int blocks = padded(width) / PART;
  return rows_at(arena.take<char>(rows_bytes(rows, blocks)), rows, blocks);
}

int longest(const Model& m) {
  int width = m.width > m.embed_width ? m.width : m.embed_width;
  return padded(width > m.heads * m.head_width ? width : m.heads * m.head_width);
}

int tokens_a_unit(const Model& m) {
  int group = m.heads / m.kv_heads;
  return group >= QUERIES ? 1 : QUERIES / group;
}

void plan(Run& run, Arena& arena) {
  const Model& m = *run.model;
  const Step& step = *run.step;
  int rows = step.rows, group = m.heads / m.kv_heads, width = padded(m.head_width);
  run.key_at = padded(m.heads * m.head_width);
  run.value_at = run.key_at + padded(m.kv_heads * m.head_width);
  run.x_stride = padded(m.width), run.mixed_stride = run.key_at;
  run.heads_stride = run.value_at + padded(m.kv_heads * m.head_width);
  run.x = arena.take<float>(rows * run.x_stride), run.heads = arena.take<float>(rows * run.heads_stride);
  run.mixed = arena.take<float>(rows * run.mixed_stride);
  run.cosines = arena.take<float>((size_t)rows * m.rotary_width), run.sines = arena.take<float>((size_t)rows * m.rotary_width);
  run.last = arena.take<float>((size_t)step.wanted * padded(m.embed_width));
  run.span_of = arena.take<int>(rows), run.position_of = arena.take<int>(rows);
  run.counters = arena.take<Counter>(8 * (size_t)m.layers + 8);
  size_t head_parts = (group + QUERIES - 1) / QUERIES;
  run.units = arena.take<Unit>((size_t)rows * m.kv_heads * head_parts + run.barrier.threads * run.barrier.threads);
  run.feed = take_rows(arena, rows, m.ff_width);
  run.entry = take_rows(arena, m.project_in.rows ? rows : 0, m.embed_width);
  run.leave = take_rows(arena, m.project_out.rows ? step.wanted : 0, m.width);
  run.final = take_rows(arena, step.wanted, m.embed_width);
  run.own = arena.take<Own>(run.barrier.threads);
  for (int i = 0; i < run.barrier.threads; i++) {
    int mine = i == 0 || rows == 1 ? rows : 0;
    Own own;
    own.stream = take_rows(arena, mine, m.width);
    own.second = take_rows(arena, m.shape == TWO_NORMS ? mine : 0, m.width);
    own.mixed = take_rows(arena, mine, m.heads * m.head_width);
    own.row = arena.take<float>(longest(m)), own.head = arena.take<float>(2 * width);
    own.query = arena.take<float>((size_t)QUERIES * width), own.out = arena.take<float>((size_t)QUERIES * width);
    own.score = arena.take<float>((size_t)QUERIES * CHUNK);
    own.half_query = arena.take<uint16_t>((size_t)QUERIES * width);
    own.half_score = arena.take<uint16_t>((size_t)QUERIES * CHUNK);
    if (arena.base) run.own[i] = own;
  }
}

// Number the rows, and cut the attention into units: the last tokens, which see most, first. Where every sequence has one new
// token, whole groups of heads go to the threads, and what is left over of them is cut up, so that none has more to do.
void lay_out(Run& run) {
  const Model& m = *run.model;
  const Step& step = *run.step;
  int group = m.heads / m.kv_heads, tokens = tokens_a_unit(m), row = 0, made = 0;
  bool single = step.rows == step.spans;
  int groups = step.spans * m.kv_heads, whole = single ? groups - groups % run.barrier.threads : groups;
  int share = (group + run.barrier.threads - 1) / run.barrier.threads;
  run.unit_count = 0;
  for (int span = 0; span < step.spans; span++) {
    int first = row, count = step.counts[span];
    for (; row < first + count; row++) run.span_of[row] = span, run.position_of[row] = step.starts[span] + row - first;
    for (int from = first + (count - 1) / tokens * tokens; from >= first; from -= tokens)
      for (int kv_head = 0; kv_head < m.kv_heads; kv_head++, made++) {
        int rows = row - from < tokens ? row - from : tokens, most = single && made >= whole ? share : group;
        int heads = most < QUERIES ? most : QUERIES;
        for (int head = 0; head < group; head += heads) {
          int many = group - head < heads ? group - head : heads;
          run.units[run.unit_count++] = {span, kv_head, kv_head * group + head, many, from, rows};
        }
      }
  }
  run.alone = single && run.unit_count == groups;
  memset(run.counters, 0, sizeof(Counter) * (8 * (size_t)m.layers + 8));
  memset(run.mixed, 0, sizeof(float) * step.rows * run.mixed_stride);
}

}  // namespace

// `memory` and `size` are the caller's to keep between steps, and to free(). False: no memory.
extern "C" bool HB_STEP(const Model* model, const Step* step, void** memory, size_t* size) {
  Run run = {};
  run.model = model, run.step = step, run.barrier.threads = model->threads;
  Arena arena = {nullptr, 0};
  plan(run, arena);
  if (arena.used > *size) {
    free(*memory);
    *size = 0;
    *memory = aligned_alloc(64, (arena.used + 63) / 64 * 64);
    if (!*memory) return false;
    *size = arena.used;
    memset(*memory, 0, *size);
  }
  arena = {static_cast<char*>(*memory), 0};
  plan(run, arena);
  lay_out(run);
  hb_pool_run(model->threads, work, &run);
  return true;
}

// For tests: rows (rows, columns) times one matrix, out (rows, rows of the matrix padded to 32), in the calling thread.
extern "C" bool HB_PRODUCT(const Matrix* matrix, const float* x, int rows, bool exact, float* out) {
  int blocks = padded(matrix->columns) / PART;
  void* memory = aligned_alloc(64, rows_bytes(rows, blocks) / 64 * 64 + 128);
  if (!memory) return false;
  memset(memory, 0, rows_bytes(rows, blocks));
  Rows kept = rows_at(memory, rows, blocks);
  for (int row = 0; row < rows; row++) keep_row(kept, wants(*matrix, exact), row, x + (size_t)row * blocks * PART);
  Model model = {};
  model.exact = exact;
  Counter counter = {};
  Run run = {};
  Own own = {};
  run.model = &model, run.barrier.threads = 1, run.counters = &counter;
  Thread t = {run, 0, 0, own};
  const Part part = {matrix, 0};
  product(t, &part, 1, kept, out, padded(matrix->rows), false);
  free(memory);
  return true;
}
