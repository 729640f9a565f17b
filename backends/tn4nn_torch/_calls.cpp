// The native runtime as a differentiable function of torch, without Python in a call: what `_native.py` does, in C++.
//
// It knows the runtime by the addresses of its two functions, and recipes as encoded plans (see `contract.c` of tn4nn).
// It calls Python for two things, through functions that `_calls.py` sets: to encode a plan for another choice of
// gradients, and for second derivatives. It is a Python module and not a torch operator: calling an operator from Python,
// with the checks before it, took longer than the arithmetic of a small layer.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Call = int(const void*, long, void* const*, long);

// Functions of Python; never freed, since the interpreter may be gone before they would be.
py::object *encoded_of, *second_of;

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) { return at::detail::empty_cpu(sizes, type); }

// Whether the numbers of a tensor lie in memory as they are, if it was not freed: a batch of gradients has no memory, and
// zeros may have none.
bool as_it_is(const Tensor& t) { return t.has_storage() && !t.is_neg() && !t._is_zerotensor(); }

// The memory of a tensor may be freed while the tensor lives on, as FSDP frees that of weights that it gathers again.
// What is read by address has to be there: see `_memory.py`.
template <class... What>
void require(const Tensor& t, const What&... what) {
  const bool contiguous = t.is_contiguous();
  const size_t there = t.storage().nbytes();
  const size_t needed = contiguous ? (t.storage_offset() + t.numel()) * t.itemsize()
                                   : at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.itemsize(), t.storage_offset());
  TORCH_CHECK(there >= needed || !t.numel(), what..., ": sizes ", t.sizes(), " need ", needed,
              " bytes in memory, received a storage of ", there, " bytes: it was freed or made smaller "
              "(`untyped_storage().resize_`, as FSDP does between calls): fill it again before the call, and keep it until "
              "the backward pass has ended");
}

// A recipe: Python owns it in a capsule, and so does every result that is to be differentiated.
struct Runtime : c10::intrusive_ptr_target {
  Runtime(std::string recipe, int64_t forward, int64_t backward, at::IntArrayRef numbers, Tensor forward_only,
          Tensor training)
      : recipe(std::move(recipe)), forward(reinterpret_cast<Call*>(forward)),
        backward(reinterpret_cast<Call*>(backward)), numbers(numbers.vec()), forward_only(std::move(forward_only)),
        training(std::move(training)) {}

  int64_t rows_of(const Tensor& x) const { return x.numel() / numbers[0]; }

  // Numbers that a training step saves beside x, as `Native.saved` in Python. They are in the head of an encoded plan.
  int64_t saved(int64_t rows) const {
    const int64_t* head = training.data_ptr<int64_t>();
    const int64_t block = head[3], states = head[13], prologue = head[14];
    return (prologue + 15) / 16 * 16 + (rows + block - 1) / block * block * states;
  }

  const std::string recipe;
  Call *const forward, *const backward;
  const std::vector<int64_t> numbers;  // of a row of x, of a row of y, and of each core
  const Tensor forward_only, training;  // encoded plans of a forward pass, without and with a backward pass to come

  // The encoded plan for the gradients of x and of the cores that are wanted.
  Tensor encoded(const std::vector<bool>& wanted) {
    {
      const std::lock_guard<std::mutex> guard(lock);
      for (const auto& [known, found] : encodings)
        if (known == wanted) return found;
    }
    Tensor made;
    {
      const py::gil_scoped_acquire python;  // not while the other lock is held
      made = (*encoded_of)(recipe, wanted).cast<Tensor>();
    }
    const std::lock_guard<std::mutex> guard(lock);
    return encodings.emplace_back(wanted, made).second;
  }

 private:
  std::mutex lock;
  std::vector<std::pair<std::vector<bool>, Tensor>> encodings;
};

using RuntimePtr = c10::intrusive_ptr<Runtime>;

// What a call of the runtime returned: not 0 where it found no memory.
void ended(int status) {
  if (!status) return;
  const py::gil_scoped_acquire python;
  PyErr_SetString(PyExc_MemoryError, "tn4nn: out of memory for the states of a batch tile: give fewer rows at a time");
  python_error error;
  error.persist();
  throw error;
}

// The runtime reads memory by address, so everything is checked before.
void checked(const Runtime& r, const Tensor& x, at::TensorList cores) {
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) == r.numbers[0] && cores.size() + 2 == r.numbers.size() && x.is_cpu(),
                    "expected rows of ", r.numbers[0], " numbers on the CPU and ", r.numbers.size() - 2,
                    " cores, received ", x.sizes(), " on ", x.device(), " and ", cores.size());
  require(x, "x");
  for (size_t i = 0; i < cores.size(); i++) {
    TORCH_CHECK_VALUE(cores[i].numel() == r.numbers[i + 2] && cores[i].scalar_type() == x.scalar_type() && cores[i].is_cpu(),
                      "core ", i, ": expected ", r.numbers[i + 2], " numbers of the input's dtype, ", x.scalar_type(),
                      ", on the CPU, received ", cores[i].numel(), " of ", cores[i].scalar_type(), " on ",
                      cores[i].device(), ": give the cores that the layer was built with, or others like them");
    require(cores[i], "core ", i);
  }
}

Tensor run_forward(const Runtime& r, const Tensor& x, at::TensorList cores, const Tensor& bias, void* saved) {
  c10::SmallVector<int64_t, 4> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = r.numbers[1];
  Tensor y = empty(sizes, x.scalar_type());
  c10::SmallVector<void*, 24> given;
  for (const auto& core : cores) given.push_back(core.data_ptr());
  const Tensor offset = bias.defined() ? bias.contiguous() : bias;
  given.insert(given.end(), {x.data_ptr(), y.data_ptr(), saved, offset.defined() ? offset.data_ptr() : nullptr});
  const Tensor& encoded = saved ? r.training : r.forward_only;
  ended(r.forward(encoded.data_ptr(), r.rows_of(x), given.data(), -at::get_num_threads()));
  return y;
}

// Nodes are reference-counted intrusively since torch 2.13, by shared_ptr before.
template <class T>
auto new_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, T>) return c10::make_intrusive<T>();
  else return std::make_shared<T>();
}

// What saved_tensors_hooks gave back has to be what they took.
void given_back(const Tensor& t, const char* what, int64_t numbers, const Tensor& like) {
  TORCH_CHECK_VALUE(t.defined() && t.numel() == numbers && t.scalar_type() == like.scalar_type() && t.is_cpu(), what,
                    " in the backward pass: expected ", numbers, " contiguous numbers of ", like.scalar_type(),
                    " on the CPU, received ", t.sizes(), " of ", t.scalar_type(), " on ", t.device(),
                    ": saved_tensors_hooks have to give back what they took");
}

// A node instead of a torch::autograd::Function, whose bookkeeping costs as much as a small layer.
struct Applied : torch::autograd::Node {
  RuntimePtr r;
  SavedVariable x, saved;
  std::vector<SavedVariable> cores;

  static Tensor forward(RuntimePtr r, const Tensor& x, at::TensorList cores, const Tensor& bias) {
    const auto node = new_node<Applied>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, cores, bias));
    const int64_t numbers = r->saved(r->rows_of(x));
    const Tensor saved = numbers ? empty({numbers}, x.scalar_type()) : Tensor();
    const Tensor y = run_forward(*r, x, cores, bias, numbers ? saved.data_ptr() : nullptr);
    // The same tensors in the same order as in `_native.py`: torch.utils.checkpoint compares them, and the second of its
    // two calls may be the first that comes here.
    node->x = SavedVariable(x, false);
    node->saved = SavedVariable(saved, false);
    node->cores.reserve(cores.size());
    for (const auto& core : cores) node->cores.emplace_back(core, false);
    node->r = std::move(r);
    torch::autograd::set_history(y, node);
    return y;
  }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    Tensor x = this->x.unpack();
    const Tensor saved = this->saved.unpack();
    std::vector<Tensor> unpacked;
    unpacked.reserve(cores.size());
    for (const auto& core : cores) unpacked.push_back(core.unpack());
    std::vector<bool> wanted;
    for (size_t i = 0; i <= unpacked.size(); i++) wanted.push_back(task_should_compute_output(i));
    variable_list found(unpacked.size() + 2);  // of x, the cores and the bias
    const Tensor& given_y = gradients[0];
    if (!given_y.defined()) return found;
    const bool in_memory = as_it_is(given_y);
    if (in_memory) require(given_y, "the gradient of y");
    if (task_should_compute_output(unpacked.size() + 1)) found.back() = gradients[0].sum_to_size({r->numbers[1]});
    if (std::find(wanted.begin(), wanted.end(), true) == wanted.end()) return found;
    if (at::GradMode::is_enabled() || !in_memory) {
      size_t next = 0;
      const py::gil_scoped_acquire python;
      const auto second = (*second_of)(r->recipe, gradients[0], x, unpacked, wanted).cast<std::vector<Tensor>>();
      for (size_t i = 0; i < wanted.size(); i++)
        if (wanted[i]) found[i] = second[next++];
      return found;
    }
    // Hooks may have brought back other tensors than they were given.
    given_back(x, "x", given_y.numel() / r->numbers[1] * r->numbers[0], given_y);
    checked(*r, x, unpacked);
    x = x.contiguous();
    for (auto& core : unpacked) core = core.contiguous();
    const int64_t numbers = r->saved(r->rows_of(x));
    if (numbers) {
      given_back(saved, "what was saved", numbers, given_y);
      TORCH_CHECK_VALUE(saved.is_contiguous(), "what was saved in the backward pass has to be contiguous");
      require(saved, "what was saved");
    }
    const Tensor gy = gradients[0].contiguous(), encoded = r->encoded(wanted);
    c10::SmallVector<void*, 48> given;
    for (const auto& core : unpacked) given.push_back(core.data_ptr());
    for (size_t i = 0; i < wanted.size(); i++)
      if (wanted[i]) found[i] = empty((i ? unpacked[i - 1] : x).sizes(), x.scalar_type());
    const auto at = [](const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; };
    given.insert(given.end(), {x.data_ptr(), nullptr, at(saved), nullptr, gy.data_ptr(), at(found[0]), nullptr, nullptr});
    for (size_t i = 1; i < wanted.size(); i++) given.push_back(at(found[i]));
    ended(r->backward(encoded.data_ptr(), r->rows_of(x), given.data(), -at::get_num_threads()));
    return found;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> guard(mutex_);
    x.reset_data();
    saved.reset_data();
    for (auto& core : cores) core.reset_data();
  }

  std::string name() const override { return "NativeBackward"; }
};

Tensor applied(RuntimePtr r, const Tensor& x, at::TensorList cores, const Tensor& bias) {
  RECORD_FUNCTION("tn4nn::native", {});
  checked(*r, x, cores);
  if (bias.defined()) {
    TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == r->numbers[1] && bias.scalar_type() == x.scalar_type() && bias.is_cpu(),
                      "bias: expected ", r->numbers[1], " numbers of the input's dtype, ", x.scalar_type(),
                      ", on the CPU, received ", bias.sizes(), " of ", bias.scalar_type(), " on ", bias.device());
    require(bias, "bias");
  }
  bool recorded = x.requires_grad() || (bias.defined() && bias.requires_grad()), contiguous = true;
  for (const auto& core : cores) {
    recorded |= core.requires_grad();
    contiguous &= core.is_contiguous();
  }
  std::vector<Tensor> copies;
  if (!contiguous) {
    for (const auto& core : cores) copies.push_back(core.contiguous());
    cores = copies;
  }
  if (recorded && at::GradMode::is_enabled()) return Applied::forward(std::move(r), x.contiguous(), cores, bias);
  return run_forward(*r, x.contiguous(), cores, bias, nullptr);
}

// -- what Python sees -----------------------------------------------------------------------------------------------

const char* const NAME = "tn4nn.recipe";

RuntimePtr runtime_in(PyObject* capsule) {
  auto* const runtime = static_cast<Runtime*>(PyCapsule_GetPointer(capsule, NAME));
  if (!runtime) throw python_error();
  return RuntimePtr::reclaim_copy(runtime);
}

py::object make_runtime(std::string recipe, int64_t forward, int64_t backward, const std::vector<int64_t>& numbers,
                        Tensor forward_only, Tensor training) {
  auto made = c10::make_intrusive<Runtime>(std::move(recipe), forward, backward, numbers, std::move(forward_only),
                                           std::move(training));
  const auto release = [](PyObject* capsule) {
    RuntimePtr::reclaim(static_cast<Runtime*>(PyCapsule_GetPointer(capsule, NAME)));
  };
  return py::reinterpret_steal<py::object>(PyCapsule_New(made.release(), NAME, release));
}

void set_callbacks(py::object encoded, py::object second) {
  encoded_of = new py::object(std::move(encoded));
  second_of = new py::object(std::move(second));
}

using Cores = c10::SmallVector<Tensor, 16>;

PyObject* result(RuntimePtr r, const Tensor& x, const Cores& cores, const Tensor& bias) {
  Tensor y;
  {
    const py::gil_scoped_release others_run;
    y = applied(std::move(r), x, cores, bias);
  }
  return THPVariable_Wrap(std::move(y));
}

Tensor tensor_or_none(PyObject* given) {
  if (given == Py_None) return {};
  TORCH_CHECK_TYPE(THPVariable_Check(given), "expected a tensor or None, received ", Py_TYPE(given)->tp_name);
  return THPVariable_Unpack(given);
}

// apply(recipe, x, cores, bias): y = x W^T + bias for x of shape (..., inputs); the cores in the network's order.
PyObject* apply(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 4 && THPVariable_Check(given[1]), "apply takes a recipe, a tensor, cores and a bias or None");
  const auto all = py::reinterpret_steal<py::object>(PySequence_Fast(given[2], "cores come in a sequence"));
  if (!all) throw python_error();
  Cores cores;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(all.ptr()); i++) {
    PyObject* const core = PySequence_Fast_GET_ITEM(all.ptr(), i);
    TORCH_CHECK_TYPE(THPVariable_Check(core), "core ", i, ": expected a tensor, received ", Py_TYPE(core)->tp_name);
    cores.push_back(THPVariable_Unpack(core));
  }
  return result(runtime_in(given[0]), THPVariable_Unpack(given[1]), cores, tensor_or_none(given[3]));
  END_HANDLE_TH_ERRORS
}

// What `unwatched` of `_native.py` checks, except for forward-mode derivatives, which only Python knows about.
bool unwatched(const Tensor& x) {
  const auto transforms = c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return x.is_cpu() && as_it_is(x) &&
         !(keys.included_ | keys.excluded_).has_any(transforms) && c10::impl::TorchDispatchModeTLS::stack_len() == 0 &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !torch::jit::tracer::isTracing();
}

// quick(recipe, x, parameters, names, own): the same with a layer's own cores and the parameter "bias"; None where cores
// have been replaced, or something must see single operations.
PyObject* quick(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 5 && PyDict_Check(given[2]) && PyTuple_Check(given[3]) && PyTuple_Check(given[4]) &&
                       PyTuple_GET_SIZE(given[3]) == PyTuple_GET_SIZE(given[4]),
                   "quick takes a recipe, a tensor, a dictionary and two tuples of one length");
  if (!THPVariable_CheckExact(given[1])) Py_RETURN_NONE;
  const Tensor& x = THPVariable_Unpack(given[1]);
  if (!unwatched(x)) Py_RETURN_NONE;
  Cores cores;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given[3]); i++) {
    PyObject* const core = PyDict_GetItemWithError(given[2], PyTuple_GET_ITEM(given[3], i));
    if (!core && PyErr_Occurred()) throw python_error();
    if (!core || core != PyTuple_GET_ITEM(given[4], i) || !THPVariable_CheckExact(core)) Py_RETURN_NONE;
    cores.push_back(THPVariable_Unpack(core));
    if (!as_it_is(cores.back())) Py_RETURN_NONE;
  }
  static PyObject* const name = PyUnicode_InternFromString("bias");
  PyObject* const bias = PyDict_GetItemWithError(given[2], name);
  if (!bias || (bias != Py_None && !(THPVariable_CheckExact(bias) && as_it_is(THPVariable_Unpack(bias))))) Py_RETURN_NONE;
  return result(runtime_in(given[0]), x, cores, tensor_or_none(bias));
  END_HANDLE_TH_ERRORS
}

PyMethodDef functions[] = {
    {"apply", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(apply)), METH_FASTCALL, nullptr},
    {"quick", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(quick)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PYBIND11_MODULE(tn4nn_calls, m) {
  m.def("set_callbacks", set_callbacks);
  m.def("make_runtime", make_runtime);
  if (PyModule_AddFunctions(m.ptr(), functions)) throw py::error_already_set();
}
