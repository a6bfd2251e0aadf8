// Products of 16 x 16 fragments by a warp, as CUDA's header of the same name has them: nvcuda::wmma. A fragment's numbers
// are dealt out to the lanes in the order of the rows; on a GPU only the hardware knows how, so nothing may depend on it.
// A fragment is read from memory by each lane for itself, at once: a missing barrier before it shows. Addresses must be
// aligned as the hardware wants them.
#pragma once

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

const unsigned SIDE = 16, SHARE = SIDE * SIDE / 32;

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static_assert(M == SIDE && N == SIDE && K == SIDE, "fragments are 16 x 16");
    static const int num_elements = SHARE;
    T x[SHARE];
};

template <class T> void check(const T *memory, unsigned stride) {
    if (reinterpret_cast<std::uintptr_t>(memory) % 32 != 0 || stride * sizeof(T) % 16 != 0) {
        std::fprintf(stderr, "a fragment's memory is not aligned: %p, rows of %u numbers\n", (const void *)memory, stride);
        std::abort();
    }
}

// Runs `visit(i, offset)` for each number of the lane.
template <class Visit> void each(unsigned stride, bool by_rows, Visit visit) {
    for (unsigned i = 0; i < SHARE; i++) {
        unsigned at = host::current % warpSize * SHARE + i, row = at / SIDE, column = at % SIDE;
        visit(i, by_rows ? row * stride + column : column * stride + row);
    }
}

template <class Use, int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &to, const T *from, unsigned stride) {
    check(from, stride);
    each(stride, std::is_same<Layout, row_major>::value, [&](unsigned i, unsigned at) { to.x[i] = from[at]; });
}

template <int M, int N, int K, class T>
void load_matrix_sync(fragment<accumulator, M, N, K, T> &to, const T *from, unsigned stride, layout_t layout) {
    check(from, stride);
    each(stride, layout == mem_row_major, [&](unsigned i, unsigned at) { to.x[i] = from[at]; });
}

template <int M, int N, int K, class T>
void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &from, unsigned stride, layout_t layout) {
    check(to, stride);
    each(stride, layout == mem_row_major, [&](unsigned i, unsigned at) { to[at] = from.x[i]; });
}

template <class Use, int M, int N, int K, class T, class Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout> &to, T value) {
    for (T &x : to.x) x = value;
}

template <int M, int N, int K, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float> &to, const fragment<matrix_a, M, N, K, T, LayoutA> &a,
              const fragment<matrix_b, M, N, K, T, LayoutB> &b, const fragment<accumulator, M, N, K, float> &c) {
    static std::vector<float> all;
    all.resize(host::threads.size() * 2 * SHARE);
    unsigned lane = host::current % warpSize;
    unsigned first = (host::current - lane) * 2 * SHARE, second = first + SIDE * SIDE;
    for (unsigned i = 0; i < SHARE; i++) {
        all[first + lane * SHARE + i] = a.x[i];
        all[second + lane * SHARE + i] = b.x[i];
    }
    host::wait(host::warps[host::current / warpSize]);
    for (unsigned i = 0; i < SHARE; i++) {
        unsigned row = (lane * SHARE + i) / SIDE, column = (lane * SHARE + i) % SIDE;
        float sum = c.x[i];
        for (unsigned k = 0; k < SIDE; k++) sum += all[first + row * SIDE + k] * all[second + k * SIDE + column];
        to.x[i] = sum;
    }
    host::wait(host::warps[host::current / warpSize]);
}

} // namespace wmma
} // namespace nvcuda
