// The library's face: what Python calls through ctypes, and the choice of an instruction set by what the processor has.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "layout.h"
#include "pool.h"

typedef bool StepFunction(const Model*, const Step*, void**, size_t*);
typedef bool ProductFunction(const Matrix*, const float*, int, bool, float*);

#define HB_PATH(name)                      \
  extern "C" StepFunction hb_step_##name;  \
  extern "C" ProductFunction hb_product_##name;
HB_PATH(plain)
#if defined(HB_WITH_AVX2)
HB_PATH(avx2)
#endif
#if defined(HB_WITH_AVX512)
HB_PATH(avx512)
#endif
#if defined(HB_WITH_AVX512BF16)
HB_PATH(avx512bf16)
#endif

namespace {

struct Path {
  const char* name;
  StepFunction* step;
  ProductFunction* product;
  bool runs;  // on this processor
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

// Best first.
const Path* paths(int* count) {
  static const Path all[] = {
#if defined(HB_WITH_AVX512BF16)
      {"avx512bf16", hb_step_avx512bf16, hb_product_avx512bf16, has_avx512() && __builtin_cpu_supports("avx512bf16")},
#endif
#if defined(HB_WITH_AVX512)
      {"avx512", hb_step_avx512, hb_product_avx512, has_avx512()},
#endif
#if defined(HB_WITH_AVX2)
      {"avx2", hb_step_avx2, hb_product_avx2, has_avx2()},
#endif
      {"plain", hb_step_plain, hb_product_plain, true},
  };
  *count = static_cast<int>(sizeof all / sizeof *all);
  return all;
}

struct Engine {
  Model model;
  StepFunction* step;
  void* memory;
  size_t size;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Name of the path with this number, best first; null when there is no such path, "" when this processor cannot run it.
const char* hb_path(int number) {
  int count;
  const Path* all = paths(&count);
  if (number >= count) return nullptr;
  return all[number].runs ? all[number].name : "";
}

Engine* hb_new(const Model* model, int path) {
  int count;
  auto* engine = static_cast<Engine*>(calloc(1, sizeof(Engine)));
  if (engine) engine->model = *model, engine->step = paths(&count)[path].step;
  return engine;
}

bool hb_run(Engine* engine, const Step* step) { return engine->step(&engine->model, step, &engine->memory, &engine->size); }

void hb_free(Engine* engine) {
  free(engine->memory);
  free(engine);
}

bool hb_product(int path, const Matrix* matrix, const float* x, int rows, bool exact, float* out) {
  int count;
  return paths(&count)[path].product(matrix, x, rows, exact, out);
}

// Ask for huge pages: a step reads all weights from front to back, and every small page costs a look-up.
void hb_huge(void* from, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE_BYTES = 4096;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
  uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes) / PAGE_BYTES * PAGE_BYTES;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)from, (void)bytes;
#endif
}

// So that Python's mirror of the structures can be checked.
size_t hb_sizes(int which) {
  const size_t sizes[] = {sizeof(Matrix), sizeof(Norm), sizeof(Layer), sizeof(Model), sizeof(Step)};
  return sizes[which];
}
}
#pragma GCC visibility pop
