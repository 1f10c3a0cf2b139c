// Preloaded into a process by test_no_allocation.py: counts what asks for or returns memory, or starts a thread, while
// one call is under way, in any thread. glibc only.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static int armed;
static int64_t counted;

static void Count(void) {
  if (__atomic_load_n(&armed, __ATOMIC_SEQ_CST)) __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
}

// function(a ... h), and how often memory was asked for or returned meanwhile. Arguments that it does not have are not
// looked at.
intptr_t call_counted(intptr_t (*function)(intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t), int64_t* count,
                      intptr_t a, intptr_t b, intptr_t c, intptr_t d, intptr_t e, intptr_t f) {
  counted = 0;
  __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
  const intptr_t result = function(a, b, c, d, e, f);
  __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
  *count = counted;
  return result;
}

void* malloc(size_t n) { return Count(), __libc_malloc(n); }
void* calloc(size_t n, size_t size) { return Count(), __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { return Count(), __libc_realloc(p, n); }
void free(void* p) { Count(), __libc_free(p); }
void* memalign(size_t to, size_t n) { return Count(), __libc_memalign(to, n); }
void* aligned_alloc(size_t to, size_t n) { return Count(), __libc_memalign(to, n); }
int posix_memalign(void** p, size_t to, size_t n) {
  Count();
  *p = __libc_memalign(to, n);
  return *p == NULL ? ENOMEM : 0;
}
void* mmap(void* at, size_t n, int protection, int flags, int file, off_t offset) {
  return Count(), (void*)syscall(SYS_mmap, at, n, protection, flags, file, offset);
}
int munmap(void* at, size_t n) { return Count(), (int)syscall(SYS_munmap, at, n); }
void* sbrk(intptr_t by) {
  Count();
  return ((void* (*)(intptr_t))dlsym(RTLD_NEXT, "sbrk"))(by);
}
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  Count();
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, start, argument);
}
