// The native runtime as a differentiable function of torch, without Python in a call: what `_native.py` does, in C++.
//
// It knows the runtime by the addresses of its two functions and recipes as pieces (see `_contract.c` of tn4nn). Two
// things are asked of Python, by operators that `_calls.py` defines: a piece for gradients that nobody has wanted
// before, and second derivatives.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Job = void(void*, long);
using Parallel = void(void*, long, Job*, void*);
using Call = void(const void*, long, void* const*, long, Parallel*, void*);

void side_by_side(void*, long parts, Job* job, void* data) {
  at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
    for (; from < to; from++) job(data, from);
  });
}

template <class R, class... A>
R asked(const char* name, A... given) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack{c10::IValue(std::move(given))...};
  op.callBoxed(&stack);
  return stack.back().to<R>();
}

c10::List<bool> listed(const std::vector<bool>& all) {
  c10::List<bool> list;
  for (const bool each : all) list.push_back(each);
  return list;
}

// A recipe: Python holds it by its address until it lets it go, and so does every result that is to be differentiated.
struct Runtime : torch::CustomClassHolder {
  Runtime(std::string recipe, int64_t forward, int64_t backward, at::IntArrayRef numbers, Tensor ahead, Tensor keeping)
      : recipe(std::move(recipe)), forward(reinterpret_cast<Call*>(forward)),
        backward(reinterpret_cast<Call*>(backward)), numbers(numbers.vec()), ahead(std::move(ahead)),
        keeping(std::move(keeping)) {}

  // Numbers that a training step keeps beside x; `Native.kept` in Python. The head of a piece holds them.
  int64_t kept(int64_t rows) const {
    const int64_t* head = keeping.data_ptr<int64_t>();
    const int64_t block = head[3], states = head[13], held = head[14];
    return (held + 15) / 16 * 16 + (rows + block - 1) / block * block * states;
  }

  const std::string recipe;
  Call *const forward, *const backward;
  const std::vector<int64_t> numbers;  // of a row of x, of a row of y, and of each core
  const Tensor ahead, keeping;         // the pieces of a forward pass, without and with a backward pass to come

  // The piece for the gradients of x and of the cores that are wanted.
  Tensor piece(const std::vector<bool>& wanted) {
    {
      const std::lock_guard<std::mutex> guard(lock);
      for (const auto& [known, found] : pieces)
        if (known == wanted) return found;
    }
    // Python's lock is taken here: not while this one is held.
    const Tensor made = asked<Tensor>("tn4nn_native::piece", recipe, listed(wanted));
    const std::lock_guard<std::mutex> guard(lock);
    return pieces.emplace_back(wanted, made).second;
  }

 private:
  std::mutex lock;
  std::vector<std::pair<std::vector<bool>, Tensor>> pieces;
};

using Held = c10::intrusive_ptr<Runtime>;

Tensor rows_ahead(const Runtime& r, const Tensor& x, at::TensorList cores, void* made) {
  const Tensor y = at::empty({x.size(0), r.numbers[1]}, x.options());
  c10::SmallVector<void*, 24> given;
  for (const auto& core : cores) given.push_back(core.data_ptr());
  given.insert(given.end(), {x.data_ptr(), y.data_ptr(), made});
  r.forward((made ? r.keeping : r.ahead).data_ptr(), x.size(0), given.data(), at::get_num_threads(), side_by_side, nullptr);
  return y;
}

// Nodes are counted from inside since torch 2.13, from outside before.
template <class T>
auto new_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, T>) return c10::make_intrusive<T>();
  else return std::make_shared<T>();
}

// A node of its own instead of a torch::autograd::Function, whose bookkeeping costs as much as a small layer.
struct Applied : torch::autograd::Node {
  Held r;
  SavedVariable x, made;
  std::vector<SavedVariable> cores;

  static Tensor forward(Held r, const Tensor& x, at::TensorList cores) {
    const auto node = new_node<Applied>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, cores));
    node->x = SavedVariable(x, false);
    node->cores.reserve(cores.size());
    for (const auto& core : cores) node->cores.emplace_back(core, false);
    Tensor y;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      const int64_t kept = r->kept(x.size(0));
      const Tensor made = kept ? at::empty({kept}, x.options()) : Tensor();
      y = rows_ahead(*r, x, cores, kept ? made.data_ptr() : nullptr);
      node->made = SavedVariable(made, false);
    }
    node->r = std::move(r);
    torch::autograd::set_history(y, node);
    return y;
  }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    const Tensor x = this->x.unpack(), made = this->made.unpack();
    std::vector<Tensor> held;
    held.reserve(cores.size());
    for (const auto& core : cores) held.push_back(core.unpack());
    std::vector<bool> wanted;
    for (size_t i = 0; i <= held.size(); i++) wanted.push_back(task_should_compute_output(i));
    variable_list found(held.size() + 1);  // of x and the cores
    if (!gradients[0].defined()) return found;
    const Tensor& given_y = gradients[0];  // a batch of gradients has no memory, and zeros may have none
    if (at::GradMode::is_enabled() || !given_y.has_storage() || given_y.is_neg() || given_y._is_zerotensor()) {
      size_t next = 0;
      const auto again =
          asked<std::vector<Tensor>>("tn4nn_native::again", r->recipe, gradients[0], x, held, listed(wanted));
      for (size_t i = 0; i < found.size(); i++)
        if (wanted[i]) found[i] = again[next++];
      return found;
    }
    const Tensor gy = gradients[0].contiguous(), piece = r->piece(wanted);
    c10::SmallVector<void*, 48> given;
    for (const auto& core : held) given.push_back(core.data_ptr());
    for (size_t i = 0; i < found.size(); i++)
      if (wanted[i]) found[i] = at::empty_like(i ? held[i - 1] : x);
    const auto at = [](const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; };
    given.insert(given.end(), {x.data_ptr(), nullptr, at(made), nullptr, gy.data_ptr(), at(found[0]), nullptr, nullptr});
    for (size_t i = 1; i < found.size(); i++) given.push_back(at(found[i]));
    r->backward(piece.data_ptr(), x.size(0), given.data(), at::get_num_threads(), side_by_side, nullptr);
    return found;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> guard(mutex_);
    x.reset_data();
    made.reset_data();
    for (auto& core : cores) core.reset_data();
  }

  std::string name() const override { return "NativeBackward"; }
};

// The runtime reads memory by address: nothing but what it was made for may come so far.
void checked(const Runtime& r, const Tensor& x, at::TensorList cores) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) == r.numbers[0] && cores.size() + 2 == r.numbers.size() && x.is_cpu(),
                    "expected rows of ", r.numbers[0], " numbers on the CPU and ", r.numbers.size() - 2,
                    " cores, received ", x.sizes(), " on ", x.device(), " and ", cores.size());
  for (size_t i = 0; i < cores.size(); i++)
    TORCH_CHECK_VALUE(cores[i].numel() == r.numbers[i + 2] && cores[i].scalar_type() == x.scalar_type() && cores[i].is_cpu(),
                      "core ", i, ": expected ", r.numbers[i + 2], " numbers of the input's dtype, ", x.scalar_type(),
                      ", on the CPU, received ", cores[i].numel(), " of ", cores[i].scalar_type(), " on ",
                      cores[i].device(), ": give the cores that the layer was built with, or others like them");
}

Tensor apply(int64_t address, const Tensor& x, at::TensorList cores) {
  const auto r = Held::reclaim_copy(reinterpret_cast<Runtime*>(address));
  checked(*r, x, cores);
  bool recorded = x.requires_grad(), contiguous = true;
  for (const auto& core : cores) {
    recorded |= core.requires_grad();
    contiguous &= core.is_contiguous();
  }
  std::vector<Tensor> copies;
  if (!contiguous) {
    for (const auto& core : cores) copies.push_back(core.contiguous());
    cores = copies;
  }
  if (recorded && at::GradMode::is_enabled()) return Applied::forward(r, x.contiguous(), cores);
  return rows_ahead(*r, x.contiguous(), cores, nullptr);
}

int64_t hold(std::string recipe, int64_t forward, int64_t backward, at::IntArrayRef numbers, Tensor ahead, Tensor keeping) {
  auto made = c10::make_intrusive<Runtime>(std::move(recipe), forward, backward, numbers, std::move(ahead), std::move(keeping));
  return reinterpret_cast<int64_t>(made.release());
}

void let_go(int64_t address) { Held::reclaim(reinterpret_cast<Runtime*>(address)); }

}  // namespace

// Addresses are plain numbers here: an operator that takes an object is called through Python, which costs 10 us.
TORCH_LIBRARY(tn4nn_native, m) {
  m.def("hold(str recipe, int forward, int backward, int[] numbers, Tensor ahead, Tensor keeping) -> int", hold);
  m.def("let_go(int address) -> ()", let_go);
  m.def("apply(int address, Tensor x, Tensor[] cores) -> Tensor", apply);
}
