/* Calls a library of the kernel with what `other_machines.py` has written, and says how many results were right. */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int Function(const int64_t *plan, int64_t rows, void *const *given, int64_t threads);

static int64_t number(FILE *file) {
  int64_t found;
  if (fread(&found, sizeof found, 1, file) != 1) exit(3);
  return found;
}

static void *numbers(FILE *file, int64_t count, int64_t size) {
  void *found = malloc((size_t)(count * size + 1));
  if (!found || fread(found, (size_t)size, (size_t)count, file) != (size_t)count) exit(3);
  return found;
}

static double at(const void *array, int64_t size, int64_t i) {
  return size == 4 ? ((const float *)array)[i] : ((const double *)array)[i];
}

int main(int count, char **words) {
  if (count != 3) return 2;
  void *library = dlopen(words[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  FILE *file = fopen(words[2], "rb");
  if (!file) return 2;
  Function *functions[] = {(Function *)dlsym(library, "forward"), (Function *)dlsym(library, "backward")};
  const int64_t cases = number(file);
  int64_t right = 0;
  for (int64_t i = 0; i < cases; i++) {
    const int64_t size = number(file), which = number(file), rows = number(file), threads = number(file);
    int64_t *plan = numbers(file, number(file), sizeof *plan);
    const int64_t arrays = number(file);
    void *given[64] = {0}, *expected[64] = {0};
    int64_t lengths[64] = {0};
    for (int64_t j = 0; j < arrays; j++) {
      const int64_t role = number(file); /* 0: none; 1: read; 2: written, what follows is expected; 3: written */
      lengths[j] = number(file);
      void *read = numbers(file, lengths[j], size);
      if (role == 1) given[j] = read;
      if (role == 2) expected[j] = read;
      if (role >= 2) given[j] = calloc((size_t)lengths[j] + 1, (size_t)size);
    }
    int agrees = !functions[which](plan, rows, given, threads);
    for (int64_t j = 0; j < arrays; j++) {
      double most = 1e-30, worst = 0;
      for (int64_t k = 0; expected[j] && k < lengths[j]; k++) {
        const double difference = fabs(at(given[j], size, k) - at(expected[j], size, k));
        most = fmax(most, fabs(at(expected[j], size, k)));
        worst = difference <= worst ? worst : difference; /* NaN is the worst */
      }
      agrees &= worst <= 1e-4 * most;
    }
    right += agrees;
  }
  printf("%lld of %lld\n", (long long)right, (long long)cases);
  return right != cases;
}
