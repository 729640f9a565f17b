/* Appended to `contract.c`: the runtime as a handler of XLA's custom calls on the CPU, which is what jax calls.
 *
 * Operands are the encoded plan (as 32-bit numbers, since jax has no longer ones by default), x, and other buffers;
 * results are buffers. The attribute "at" is an array: 1 for the backward pass or 0 for the forward pass, and then the
 * number of the buffer (see Head) of each operand but the plan, and of each result.
 *
 * Of XLA's C interface, which is stable, only what is read here is declared, so that no header of jaxlib is needed: see
 * xla/ffi/api/c_api.h there. These parts are the same in its versions 0.1 (jaxlib 0.5) to 0.3 (jaxlib 0.10).
 */
enum { XLA_METADATA = 1, XLA_EXECUTE = 3, XLA_ARRAY = 1, XLA_S64 = 5, XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 };

typedef struct XlaExtension { size_t size; int type; struct XlaExtension *next; } XlaExtension;
typedef struct { size_t size; XlaExtension *extension; int major, minor; } XlaVersion;
typedef struct { size_t size; XlaVersion version; uint32_t traits; } XlaMetadata;
typedef struct { XlaExtension base; XlaMetadata *metadata; } XlaMetadataExtension;
typedef struct { size_t size; XlaExtension *extension; int type; void *data; int64_t rank, *dims; } XlaBuffer;
typedef struct { int type; size_t size; void *data; } XlaArray;
typedef struct { size_t size; XlaExtension *extension; int64_t count; int *types; void **at; } XlaBuffers;
typedef struct { size_t size; XlaExtension *extension; int64_t count; int *types; void **names, **at; } XlaAttributes;
typedef struct XlaError XlaError;
typedef struct { size_t size; XlaExtension *extension; const char *message; int code; } XlaErrorCreate;
typedef struct { size_t size; XlaExtension *extension; XlaError *error; } XlaErrorDestroy;
typedef struct { size_t size; XlaExtension *extension; void *context; int64_t *threads; } XlaNumThreads;
typedef struct {
  size_t size;
  XlaExtension *extension;
  XlaVersion version;
  const void *internal;
  XlaError *(*create_error)(XlaErrorCreate *);
  void *get_message;
  void (*destroy_error)(XlaErrorDestroy *);
  void *others[9];
  XlaError *(*num_threads)(XlaNumThreads *);
} XlaApi;
typedef struct {
  size_t size;
  XlaExtension *extension;
  const XlaApi *api;
  void *context;
  int stage;
  XlaBuffers args, results;
  XlaAttributes attributes;
} XlaCallFrame;

int xla_minor = 3; /* the version that is asked for, 0.3; the host sets an older one where jaxlib is older */

static Int threads_of(XlaCallFrame *f) {
  int64_t found = 1;
  XlaNumThreads asked = {sizeof asked, 0, f->context, &found};
  XlaError *error = f->api->num_threads(&asked);
  if (!error) return found;
  XlaErrorDestroy over = {sizeof over, 0, error};
  f->api->destroy_error(&over);
  return 1;
}

static XlaError *wrong(XlaCallFrame *f, int code, const char *message) {
  XlaErrorCreate made = {offsetof(XlaErrorCreate, code) + sizeof code, 0, message, code}; /* without what pads it */
  return f->api->create_error(&made);
}

XlaError *handle(XlaCallFrame *f) {
  if (f->extension && f->extension->type == XLA_METADATA) {
    XlaMetadata *about = ((XlaMetadataExtension *)f->extension)->metadata;
    about->version.major = 0;
    about->version.minor = xla_minor;
    about->traits = 0;
    return 0;
  }
  if (f->stage != XLA_EXECUTE) return 0;
  const Int operands = f->args.count - 1, results = f->results.count;
  const XlaArray *positions = f->attributes.count == 1 ? f->attributes.at[0] : 0;
  if (operands < 1 || !positions || f->attributes.types[0] != XLA_ARRAY || positions->type != XLA_S64 ||
      (Int)positions->size != 1 + operands + results)
    return wrong(f, XLA_INVALID_ARGUMENT, "tn4nn: this call was made by another version of tn4nn: compile it again");
  const Int *at = positions->data;
  const Head *p = ((XlaBuffer *)f->args.at[0])->data;
  if (p->width % W) return wrong(f, XLA_INVALID_ARGUMENT, "tn4nn: this call was compiled for another processor: compile it again");
  const XlaBuffer *x = f->args.at[1];
  REAL *given[p->buffers];
  memset(given, 0, sizeof given);
  for (Int i = 0; i < operands; i++) given[at[1 + i]] = ((XlaBuffer *)f->args.at[1 + i])->data;
  for (Int i = 0; i < results; i++) given[at[1 + operands + i]] = ((XlaBuffer *)f->results.at[i])->data;
  const Int rows = x->dims[0], threads = threads_of(f);
  if ((at[0] ? backward : forward)((const Int *)p, rows, given, threads))
    return wrong(f, XLA_RESOURCE_EXHAUSTED, "tn4nn: out of memory for the states of a batch tile");
  return 0;
}
