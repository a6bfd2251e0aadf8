// A stand-in for the CUDA runtime, so that emitted kernels run on the host: one block after another, each of its
// threads a coroutine. A barrier or a shuffle hands over to the next thread until all of the block, or of the warp,
// have arrived. Shuffles must be reached by whole warps: a kernel in which they are not is aborted, although a GPU might
// bear it. Every launch runs twice, with the threads taking turns in one order and in the reverse, and must give the
// same bytes: where a barrier is missing, one of the two orders reads what is not written yet. Shared memory is filled
// with ones before each block, so that nothing is left from the block before.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>
#include "cuda_bf16.h"

#define __global__
#define __device__
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__
#define __align__(bytes)

struct Place {
    unsigned x, y, z;
};
static Place blockIdx, blockDim, gridDim, threadIdx;
static const unsigned warpSize = 32;

namespace host {

const std::size_t STACK = 256 * 1024;

// Some threads that wait for one another.
struct Barrier {
    unsigned members = 0, arrived = 0, round = 0;
    void release_if_full() {
        if (members > 0 && arrived == members) {
            arrived = 0;
            round++;
        }
    }
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};

static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<Barrier> warps;
static std::vector<std::uint64_t> exchanged;
static Barrier block;
static unsigned current;
static bool progress, reversed;
static char *shared;
static std::size_t shared_size;
static void (*body)(void *);
static void *body_arguments;

static void wait(Barrier &barrier) {
    unsigned round = barrier.round;
    barrier.arrived++;
    progress = true;
    barrier.release_if_full();
    while (barrier.round == round) {
        swapcontext(&threads[current].context, &scheduler);
    }
}

static void thread_main() {
    body(body_arguments);
    threads[current].done = true;
    progress = true;
    for (Barrier *barrier : {&warps[current / warpSize], &block}) {
        barrier->members--;
        barrier->release_if_full();
    }
}

static void run_block(unsigned count) {
    std::memset(shared, 0xff, shared_size);
    if (threads.size() != count) {
        threads = std::vector<Thread>(count);
        for (Thread &thread : threads) thread.stack.resize(STACK);
    }
    warps.assign((count + warpSize - 1) / warpSize, Barrier());
    exchanged.assign(count, 0);
    block = Barrier();
    block.members = count;
    for (unsigned i = 0; i < count; i++) {
        warps[i / warpSize].members++;
        Thread &thread = threads[i];
        thread.done = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        makecontext(&thread.context, thread_main, 0);
    }
    for (unsigned left = count; left > 0;) {
        progress = false;
        left = 0;
        for (unsigned i = 0; i < count; i++) {
            current = reversed ? count - 1 - i : i;
            if (threads[current].done) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &threads[current].context);
            left += !threads[current].done;
        }
        if (!progress && left > 0) {
            std::fprintf(stderr, "threads wait for others of their warp or block that never arrive\n");
            std::abort();
        }
    }
}

// The value that another lane of the warp gave; a thread's own where there is no such lane.
template <class T> T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 8, "shuffles move 8 bytes at most");
    Barrier &warp = warps[current / warpSize];
    std::memcpy(&exchanged[current], &value, sizeof(T));
    wait(warp);
    unsigned from = current / warpSize * warpSize + lane;
    T other = value;
    if (lane < warpSize && from < exchanged.size()) std::memcpy(&other, &exchanged[from], sizeof(T));
    wait(warp);
    return other;
}

template <class... A> struct Kernel {
    void (*function)(A...);
    void **arguments;
    template <std::size_t... I> void call(std::index_sequence<I...>) {
        function(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
    }
    static void main(void *self) { static_cast<Kernel *>(self)->call(std::index_sequence_for<A...>()); }
};

// Runs a kernel; `arguments` points to its arguments, as for cuLaunchKernel.
template <class... A>
void launch(void (*function)(A...), Place grid, unsigned count, void **arguments, char *memory, std::size_t size) {
    shared = memory;
    shared_size = size;
    Kernel<A...> kernel{function, arguments};
    gridDim = grid;
    blockDim = {count, 1, 1};
    body = Kernel<A...>::main;
    body_arguments = &kernel;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(count);
}

template <class T> T read_stream() {
    T value;
    if (std::fread(&value, sizeof(T), 1, stdin) != 1) std::abort();
    return value;
}

// A launch from standard input: number of the kernel, grid, threads, and the arguments, each with its size. Buffers
// come first; they are written to standard output afterwards.
template <class Run> int serve(Run run) {
    unsigned kernel = read_stream<unsigned>();
    Place grid = read_stream<Place>();
    unsigned count = read_stream<unsigned>();
    unsigned buffers = read_stream<unsigned>();
    unsigned total = read_stream<unsigned>();
    std::vector<std::vector<char *>> memory(2);
    std::vector<std::size_t> sizes;
    for (unsigned i = 0; i < total; i++) {
        sizes.push_back(read_stream<std::uint64_t>());
        for (auto &copy : memory) {
            // Alone on the heap, so that the address sanitizer sees an access outside.
            copy.push_back(static_cast<char *>(std::aligned_alloc(16, (sizes[i] + 15) / 16 * 16)));
        }
        if (sizes[i] > 0 && std::fread(memory[0][i], 1, sizes[i], stdin) != sizes[i]) std::abort();
        std::memcpy(memory[1][i], memory[0][i], sizes[i]);
    }
    for (auto &copy : memory) {
        std::vector<void *> arguments;
        for (unsigned i = 0; i < total; i++) {
            arguments.push_back(i < buffers ? static_cast<void *>(&copy[i]) : copy[i]);
        }
        run(kernel, grid, count, arguments.data());
        reversed = true;
    }
    for (unsigned i = 0; i < buffers; i++) {
        if (std::memcmp(memory[0][i], memory[1][i], sizes[i]) != 0) {
            std::fprintf(stderr, "buffer %u depends on the order of threads: a barrier is missing\n", i);
            std::abort();
        }
        std::fwrite(memory[0][i], 1, sizes[i], stdout);
    }
    return 0;
}

} // namespace host

static void __syncthreads() { host::wait(host::block); }
static void __syncwarp() { host::wait(host::warps[host::current / warpSize]); }
static unsigned __activemask() { return 0xffffffff; }
template <class T> T __shfl_sync(unsigned, T value, unsigned lane) { return host::exchange(value, lane % warpSize); }
template <class T> T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return host::exchange(value, host::current % warpSize ^ mask);
}
template <class T> T __shfl_up_sync(unsigned, T value, unsigned delta) {
    unsigned lane = host::current % warpSize;
    return host::exchange(value, lane < delta ? lane : lane - delta);
}
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta) {
    return host::exchange(value, host::current % warpSize + delta);
}
static int __any_sync(unsigned, int predicate) {
    int any = 0;
    for (unsigned lane = 0; lane < warpSize; lane++) any |= host::exchange(predicate, lane);
    return any;
}
template <class T, class V> T atomicAdd(T *address, V value) {
    T old = *address;
    *address = old + T(value);
    return old;
}
template <class T, class V> T atomicExch(T *address, V value) {
    T old = *address;
    *address = T(value);
    return old;
}
static float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
using std::max;
using std::min;
#include "mma.h"
