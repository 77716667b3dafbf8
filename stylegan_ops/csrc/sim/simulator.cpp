// The simulator as a shared library: all kernels, and `cusim_launch` to run them. See cusim.h.
#pragma GCC visibility push(hidden)  // Several builds of it may be loaded at once.
#include "cusim.h"

#include "../cuda/kernels.cu"
#pragma GCC visibility pop

#include <stdlib.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// ucontext works on every Unix, but saves the signal mask by a system call at each switch: over ten times as slow.
#if !(defined(__x86_64__) && defined(__linux__)) && !defined(CUSIM_UCONTEXT)
#define CUSIM_UCONTEXT
#endif
#ifdef CUSIM_UCONTEXT
#include <ucontext.h>
#endif

#pragma GCC visibility push(hidden)
cusim::Dimensions gridDim, blockIdx, blockDim, threadIdx;

namespace cusim {

void* shared_memory;

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}

Registration::Registration(const char* name, Kernel kernel) { kernels()[name] = kernel; }

// A place of execution that can be left and entered again.
#ifndef CUSIM_UCONTEXT

struct Context {
    void* stack_pointer = nullptr;
};

// Saves its stack pointer to `from`, and with it the registers that the System V ABI has a function keep; continues
// on the stack `to`.
extern "C" void cusim_switch(void** from, void* to);
asm(R"(
    .text
    .local cusim_switch
    .type cusim_switch, @function
cusim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cusim_switch, . - cusim_switch
)");

static void switch_context(Context& from, Context& to) { cusim_switch(&from.stack_pointer, to.stack_pointer); }

static void prepare_context(Context& context, char* stack, size_t size, Context&, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size);  // A multiple of 16.
    *--top = nullptr;  // Entered by `ret`, a function finds its stack pointer 8 below a multiple of 16.
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}

#else

struct Context {
    ucontext_t state;
};

static void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

static void prepare_context(Context& context, char* stack, size_t size, Context& back, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = size;
    context.state.uc_link = &back.state;
    makecontext(&context.state, entry, 0);
}

#endif

static const size_t STACK_SIZE = 64 * 1024;

struct FreeMemory {
    void operator()(void* memory) const { free(memory); }
};
typedef std::unique_ptr<char, FreeMemory> Memory;

struct Fiber {
    Context context;
    Memory stack;
    Dimensions index;
    bool finished = false;
};

static Context scheduler;
static Fiber* current;
static Kernel running_kernel;
static const void* running_params;

void barrier() { switch_context(current->context, scheduler); }

static void run_fiber() {
    running_kernel(running_params);
    current->finished = true;
    switch_context(current->context, scheduler);
}

// SplitMix64 (Steele, Lea and Flood 2014).
struct Random {
    unsigned long long state;

    unsigned long long next() {
        unsigned long long z = state += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
};

// Runs one block; false if some threads wait at a barrier that others never reach.
static bool run_block(std::vector<Fiber>& fibers, Random& random) {
    std::vector<Fiber*> order;
    for (Fiber& fiber : fibers) {
        prepare_context(fiber.context, fiber.stack.get(), STACK_SIZE, scheduler, run_fiber);
        fiber.finished = false;
        order.push_back(&fiber);
    }
    while (true) {
        for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.next() % (i + 1)]);
        size_t finished = 0;
        for (Fiber* fiber : order) {
            current = fiber;
            threadIdx = fiber->index;
            switch_context(scheduler, fiber->context);
            finished += fiber->finished;
        }
        if (finished == order.size()) return true;
        if (finished > 0) return false;
    }
}

}  // namespace cusim
#pragma GCC visibility pop

// Runs a kernel and returns 0; 1: no kernel has that name; 2: a barrier that not all threads of a block reach;
// 3: no memory. `seed` determines the order of the threads.
extern "C" __attribute__((visibility("default"))) int cusim_launch(const char* name, const unsigned int grid[3],
                                                                   const unsigned int block[3],
                                                                   unsigned int shared_bytes, const void* params,
                                                                   unsigned long long seed) {
    using namespace cusim;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    running_kernel = found->second;
    running_params = params;
    Random random = {seed};

    std::vector<Fiber> fibers(static_cast<size_t>(block[0]) * block[1] * block[2]);
    for (size_t i = 0; i < fibers.size(); ++i) {
        const unsigned int thread = static_cast<unsigned int>(i), row = thread / block[0];
        fibers[i].index = {thread % block[0], row % block[1], row / block[1]};
        fibers[i].stack.reset(static_cast<char*>(aligned_alloc(16, STACK_SIZE)));
        if (!fibers[i].stack) return 3;
    }
    const Memory shared(static_cast<char*>(malloc(shared_bytes)));
    if (shared_bytes && !shared) return 3;
    shared_memory = shared.get();
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                if (shared_bytes) memset(shared_memory, 0xff, shared_bytes);  // NaN in every type.
                if (!run_block(fibers, random)) return 2;
            }
        }
    }
    return 0;
}
