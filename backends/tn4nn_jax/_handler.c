/* Appended to `contract.c`: the runtime as a handler of XLA's custom calls on the CPU.
 *
 * Operands are the encoded plan (as 32-bit numbers, since jax has no longer ones by default), x, and other buffers;
 * results are buffers. The attribute "at" is an array: 1 for the backward pass or 0 for the forward pass, and then the
 * number of the buffer (see Head) of each operand but the plan, and of each result.
 */
#include <stdatomic.h>
#include <xla/ffi/api/c_api.h>

/* Parts of a job for several threads. Every thread takes the next part that is left, the caller too: so a pool whose
 * threads are all busy, or that runs late, delays nothing. */
typedef struct {
  atomic_long next, done, owners;
  long parts;
  Job *job;
  void *data;
} Team;

static void help(void *team) {
  Team *t = team;
  for (long part; (part = atomic_fetch_add(&t->next, 1)) < t->parts; atomic_fetch_add(&t->done, 1)) t->job(t->data, part);
  if (atomic_fetch_sub(&t->owners, 1) == 1) free(t);
}

static void failed(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, 0, error};
  api->XLA_FFI_Error_Destroy(&args);
}

static void in_pool(void *host, long parts, Job *job, void *data) {
  XLA_FFI_CallFrame *f = host;
  Team *t = malloc(sizeof(Team));
  if (!t) abort();
  *t = (Team){0, 0, 2, parts, job, data}; /* the caller owns it twice: while it helps and while it waits */
  for (long i = 1; i < parts; i++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, f->ctx, help, t};
    atomic_fetch_add(&t->owners, 1);
    XLA_FFI_Error *error = f->api->XLA_FFI_ThreadPool_Schedule(&args);
    if (!error) continue;
    atomic_fetch_sub(&t->owners, 1);
    failed(f->api, error);
  }
  help(t);
  while (atomic_load(&t->done) < parts) {
    #if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
    #endif
  }
  if (atomic_fetch_sub(&t->owners, 1) == 1) free(t);
}

static long threads_of(XLA_FFI_CallFrame *f) {
  int64_t found = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, f->ctx, &found};
  XLA_FFI_Error *error = f->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (error) failed(f->api, error);
  return error ? 1 : found;
}

static XLA_FFI_Error *wrong(XLA_FFI_CallFrame *f, const char *message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, 0, message, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return f->api->XLA_FFI_Error_Create(&args);
}

XLA_FFI_Error *handle(XLA_FFI_CallFrame *f) {
  if (f->extension_start && f->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *about = ((XLA_FFI_Metadata_Extension *)f->extension_start)->metadata;
    about->api_version.major_version = XLA_FFI_API_MAJOR;
    about->api_version.minor_version = XLA_FFI_API_MINOR;
    about->traits = 0;
    return 0;
  }
  if (f->stage != XLA_FFI_ExecutionStage_EXECUTE) return 0;
  const long operands = f->args.size - 1, results = f->rets.size;
  const XLA_FFI_Array *positions = f->attrs.size == 1 ? f->attrs.attrs[0] : 0;
  if (operands < 1 || !positions || f->attrs.types[0] != XLA_FFI_AttrType_ARRAY ||
      positions->dtype != XLA_FFI_DataType_S64 || (long)positions->size != 1 + operands + results)
    return wrong(f, "tn4nn: this call was made by another version of tn4nn: compile it again");
  const long *at = positions->data;
  const Head *p = ((XLA_FFI_Buffer *)f->args.args[0])->data;
  if (p->width % W) return wrong(f, "tn4nn: this call was compiled for another processor: compile it again");
  const XLA_FFI_Buffer *x = f->args.args[1];
  REAL *given[p->buffers];
  memset(given, 0, sizeof given);
  for (long i = 0; i < operands; i++) given[at[1 + i]] = ((XLA_FFI_Buffer *)f->args.args[1 + i])->data;
  for (long i = 0; i < results; i++) given[at[1 + operands + i]] = ((XLA_FFI_Buffer *)f->rets.rets[i])->data;
  const long rows = x->dims[0], threads = rows < 2 * SHARE ? 1 : threads_of(f);
  (at[0] ? backward : forward)((const long *)p, rows, given, threads, in_pool, f);
  return 0;
}
