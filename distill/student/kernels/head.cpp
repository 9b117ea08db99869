// The max-pooling head on CPUs: the vocabulary product, with each tile reduced before it leaves the registers, and the
// two sparse-dense products of its backward. Plain C++17 with a C interface (see cpu.py). Results do not depend on the
// number of threads.
//
// The product is blocked as in BLIS: ROWS tokens times TERMS terms accumulate in registers (or in AMX tiles), a packed
// group of the vocabulary stays in the L2 cache, and tokens are packed once, so that a block of them streams through the
// L1 cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <vector>

#include "bf16.h"
#include "threads.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#define DISTILL_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512BF16__) || defined(DISTILL_AMX)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTER_ROWS = 8, REGISTER_VECTORS = 3;  // 24 of 32 registers accumulate
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTER_ROWS = 6, REGISTER_VECTORS = 2;  // 12 of 16
#else
constexpr int LANES = 4, REGISTER_ROWS = 8, REGISTER_VECTORS = 2;  // NEON: 16 of 32
#endif
constexpr int64_t GROUP_BYTES = 320 << 10;  // size of a group's packed weights, to stay in the L2 cache

typedef float Floats __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), may_alias));

// ---------------------------------------------------------------------------------------------- forward

// `multiply`: the products of ROWS tokens with VECTORS * LANES terms, over the hidden dimension, whose size `depth` is a
// multiple of DEPTH. Of tokens and terms, TOKEN_STEP and TERM_STEP values each are adjacent (see `pack`). A thread
// that multiplies has a Scope.

template <int ROWS, int VECTORS>
inline void clear(Floats (&acc)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) acc[i][j] = Floats{};
    }
}

struct Singles {  // float32
    using T = float;
    static constexpr int ROWS = REGISTER_ROWS, VECTORS = REGISTER_VECTORS, TERMS = LANES * VECTORS;
    static constexpr int DEPTH = 1, TOKEN_STEP = 1, TERM_STEP = 1;
    struct Scope {};

    static void multiply(const T* tokens, const T* terms, int64_t depth, Floats (&acc)[ROWS][VECTORS]) {
        clear(acc);
        for (int64_t k = 0; k < depth; ++k, tokens += ROWS, terms += TERMS) {
            Floats w[VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) w[j] = *(const Floats*)(terms + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) acc[i][j] += tokens[i] * w[j];
            }
        }
    }
};

#ifdef __AVX512BF16__
struct Pairs {  // bf16, two values of the hidden dimension at a time
    using T = uint16_t;
    static constexpr int ROWS = REGISTER_ROWS, VECTORS = REGISTER_VECTORS, TERMS = LANES * VECTORS;
    static constexpr int DEPTH = 2, TOKEN_STEP = 2, TERM_STEP = 2;
    struct Scope {};

    static void multiply(const T* tokens, const T* terms, int64_t depth, Floats (&acc)[ROWS][VECTORS]) {
        clear(acc);
        for (int64_t k = 0; k < depth; k += 2, tokens += 2 * ROWS, terms += 2 * TERMS) {
            __m512bh w[VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) w[j] = (__m512bh)_mm512_load_si512(terms + 2 * j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                int32_t pair;
                std::memcpy(&pair, tokens + 2 * i, 4);
                __m512bh t = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) acc[i][j] = (Floats)_mm512_dpbf16_ps((__m512)acc[i][j], t, w[j]);
            }
        }
    }
};
#endif

#ifdef DISTILL_AMX
struct Tiles {  // bf16 in tiles of 16 x 32 values: two of tokens times two of terms
    using T = uint16_t;
    static constexpr int ROWS = 32, VECTORS = 2, TERMS = LANES * VECTORS;
    static constexpr int DEPTH = 32, TOKEN_STEP = 32, TERM_STEP = 2;
    static_assert(LANES == 16);

    // Asks the kernel for the tiles' registers, once per process; a machine or a container may refuse them.
    static bool allowed() {
        constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
        return granted;
    }

    struct Scope {
        Scope() {
            struct alignas(64) {
                uint8_t palette = 1, start_row = 0, reserved[14] = {};
                uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
                uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
            } config;
            _tile_loadconfig(&config);
            // the compiler does not know that loading a tile reads memory: what is packed must be stored before
            __asm__ volatile("" ::: "memory");
        }
        ~Scope() { _tile_release(); }
        Scope(const Scope&) = delete;
    };

    static void multiply(const T* tokens, const T* terms, int64_t depth, Floats (&acc)[ROWS][VECTORS]) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < depth; k += 32, tokens += 32 * ROWS, terms += 32 * TERMS) {
            _tile_loadd(4, tokens, 64);
            _tile_loadd(5, tokens + 16 * 32, 64);
            _tile_loadd(6, terms, 4 * TERMS);
            _tile_loadd(7, terms + 2 * LANES, 4 * TERMS);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, &acc[0][0], sizeof(acc[0]));
        _tile_stored(1, &acc[0][1], sizeof(acc[0]));
        _tile_stored(2, &acc[16][0], sizeof(acc[0]));
        _tile_stored(3, &acc[16][1], sizeof(acc[0]));
    }
};
#endif

// Packs the rows row(0), ..., row(count - 1) of a [*, width] matrix as [depth / step][size][step], padded with zeros.
template <int size, int step, class T, class Row>
void pack(T* out, const T* matrix, int64_t width, int64_t depth, int64_t count, Row row) {
    std::fill_n(out, depth * size, T(0));
    for (int64_t i = 0; i < std::min<int64_t>(count, size); ++i) {
        const T* source = matrix + row(i) * width;
        for (int64_t k = 0; k < width; ++k) out[(k / step * size + i) * step + k % step] = source[k];
    }
}

template <class T>
struct Aligned {  // memory aligned to a cache line
    std::vector<char> bytes;
    T* data;
    explicit Aligned(int64_t count) : bytes(count * sizeof(T) + 64) {
        data = (T*)((uintptr_t(bytes.data()) + 63) / 64 * 64);
    }
};

struct Active {
    int32_t term, row;
    float value;
};

struct ActiveTerms {  // active terms of one group of the vocabulary, text by text
    std::vector<Active> entries;
    std::vector<int64_t> starts;  // [texts + 1]
};

struct Forward {
    int64_t texts;
    std::vector<ActiveTerms> groups;
};

template <class Kernel, class T = typename Kernel::T>
Forward* max_forward(const T* hidden, const int64_t* rows, const int64_t* offsets, int64_t texts, const T* weight,
                     const float* bias, int64_t vocabulary, int64_t width, int threads) {
    constexpr int ROWS = Kernel::ROWS, VECTORS = Kernel::VECTORS, TERMS = Kernel::TERMS;
    const int64_t tokens = offsets[texts], depth = (width + Kernel::DEPTH - 1) / Kernel::DEPTH * Kernel::DEPTH;
    const int64_t blocks = (tokens + ROWS - 1) / ROWS, block_size = depth * ROWS;
    Aligned<T> packed(blocks * block_size);
    parallel(blocks, threads, [&](int64_t block) {
        const int64_t* first = rows + block * ROWS;
        pack<ROWS, Kernel::TOKEN_STEP>(packed.data + block * block_size, hidden, width, depth, tokens - block * ROWS,
                                       [=](int64_t i) { return first[i]; });
    });
    std::vector<int32_t> text_of(tokens);
    for (int64_t b = 0; b < texts; ++b) std::fill(&text_of[0] + offsets[b], &text_of[0] + offsets[b + 1], int32_t(b));

    const int64_t panel_size = depth * TERMS;
    const int64_t panels = std::clamp<int64_t>(GROUP_BYTES / (panel_size * sizeof(T)), 1, 8), span = panels * TERMS;
    auto result = std::make_unique<Forward>(Forward{texts, {}});
    result->groups.resize((vocabulary + span - 1) / span);
    parallel(result->groups.size(), threads, [&](int64_t group) {
        const int64_t first = group * span, count = std::min(span, vocabulary - first);
        Aligned<T> terms(panels * panel_size);
        Aligned<float> offset(span);
        for (int64_t p = 0; p * TERMS < count; ++p)
            pack<TERMS, Kernel::TERM_STEP>(terms.data + p * panel_size, weight, width, depth, count - p * TERMS,
                                           [=](int64_t i) { return first + p * TERMS + i; });
        std::fill_n(offset.data, span, 0.0f);
        if (bias)
            for (int64_t v = 0; v < count; ++v) offset.data[v] = bias[first + v];
        Aligned<float> best(texts * span);
        Aligned<int32_t> at(texts * span);
        std::fill_n(best.data, texts * span, -std::numeric_limits<float>::infinity());
        [[maybe_unused]] typename Kernel::Scope scope;
        for (int64_t block = 0; block < blocks; ++block) {
            const int valid = int(std::min<int64_t>(ROWS, tokens - block * ROWS));
            for (int64_t p = 0; p * TERMS < count; ++p) {
                Floats acc[ROWS][VECTORS];
                Kernel::multiply(packed.data + block * block_size, terms.data + p * panel_size, depth, acc);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    if (i >= valid) break;
                    const int32_t token = int32_t(block * ROWS + i);
                    const int64_t place = text_of[token] * span + p * TERMS;
#pragma GCC unroll 8
                    for (int j = 0; j < VECTORS; ++j) {
                        auto& old = *(Floats*)(best.data + place + j * LANES);
                        auto& old_at = *(Ints*)(at.data + place + j * LANES);
                        Floats logit = acc[i][j] + *(const Floats*)(offset.data + p * TERMS + j * LANES);
                        // the first of equals stays; NaN replaces anything and stays
                        Ints better = ~(Ints)(logit <= old) & (Ints)(old == old);
                        old = better ? logit : old;
                        old_at = better ? (Ints{} + token) : old_at;
                    }
                }
            }
        }
        ActiveTerms& active = result->groups[group];
        active.starts.assign(texts + 1, 0);
        for (int64_t b = 0; b < texts; ++b) {
            for (int64_t v = 0; v < count; ++v)
                if (float value = best.data[b * span + v]; !(value <= 0))
                    active.entries.push_back({int32_t(first + v), at.data[b * span + v], value});
            active.starts[b + 1] = active.entries.size();
        }
    });
    return result.release();
}

// --------------------------------------------------------------------------------------------- backward

// out += sum of coefficients[order[k]] * table[source[order[k]]] over k < count, four rows at a time
template <class T>
void accumulate(float* __restrict out, const int32_t* order, int64_t count, const float* coefficients,
                const int64_t* source, const T* table, int64_t width) {
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
        const int32_t *o = order + k;
        const T* __restrict r0 = table + source[o[0]] * width;
        const T* __restrict r1 = table + source[o[1]] * width;
        const T* __restrict r2 = table + source[o[2]] * width;
        const T* __restrict r3 = table + source[o[3]] * width;
        const float c0 = coefficients[o[0]], c1 = coefficients[o[1]];
        const float c2 = coefficients[o[2]], c3 = coefficients[o[3]];
        for (int64_t j = 0; j < width; ++j)
            out[j] += (c0 * to_float(r0[j]) + c1 * to_float(r1[j])) + (c2 * to_float(r2[j]) + c3 * to_float(r3[j]));
    }
    for (; k < count; ++k) {
        const T* __restrict r = table + source[order[k]] * width;
        const float c = coefficients[order[k]];
        for (int64_t j = 0; j < width; ++j) out[j] += c * to_float(r[j]);
    }
}

// dh[row] += c W[term]; the entries of a text are grouped by row with a counting sort
template <class T>
void hidden_gradient(const int64_t* indptr, int64_t texts, const int64_t* rows, const int64_t* terms,
                     const float* coefficients, const T* weight, int64_t width, float* d_hidden, int threads) {
    parallel(texts, threads, [&](int64_t b) {
        const int64_t first = indptr[b], count = indptr[b + 1] - first;
        if (!count) return;
        const auto [low, high] = std::minmax_element(rows + first, rows + first + count);
        const int64_t base = *low;
        std::vector<int32_t> starts(*high - base + 2), order(count);
        for (int64_t k = 0; k < count; ++k) ++starts[rows[first + k] - base + 1];
        for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
        auto place = starts;
        for (int64_t k = 0; k < count; ++k) order[place[rows[first + k] - base]++] = int32_t(k);
        for (size_t i = 0; i + 1 < starts.size(); ++i)
            accumulate(d_hidden + (base + i) * width, &order[0] + starts[i], starts[i + 1] - starts[i],
                       coefficients + first, terms + first, weight, width);
    });
}

// dW[term] += c h[row], db[term] += c; one range of the vocabulary at a time, located in each text by binary search
template <class T>
void weight_gradient(const int64_t* indptr, int64_t texts, const int64_t* rows, const int64_t* terms,
                     const float* coefficients, const T* hidden, int64_t vocabulary, int64_t width,
                     float* d_weight, float* d_bias, int threads) {
    constexpr int64_t RANGE = 256;
    parallel((vocabulary + RANGE - 1) / RANGE, threads, [&](int64_t range) {
        const int64_t low = range * RANGE, high = std::min(low + RANGE, vocabulary);
        std::vector<std::pair<int64_t, int64_t>> spans(texts);
        std::vector<int32_t> starts(high - low + 1), order;
        for (int64_t b = 0; b < texts; ++b) {
            const int64_t *from = terms + indptr[b], *to = terms + indptr[b + 1];
            from = std::lower_bound(from, to, low);
            to = std::lower_bound(from, to, high);
            spans[b] = {from - terms, to - terms};
            for (; from < to; ++from) ++starts[*from - low + 1];
        }
        for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
        order.resize(starts.back());
        auto place = starts;
        for (auto [k, end] : spans)
            for (; k < end; ++k) order[place[terms[k] - low]++] = int32_t(k);
        for (int64_t v = low; v < high; ++v) {
            const int64_t from = starts[v - low], to = starts[v - low + 1];
            if (d_weight) {
                std::fill_n(d_weight + v * width, width, 0.0f);
                accumulate(d_weight + v * width, order.data() + from, to - from, coefficients, rows, hidden, width);
            }
            if (d_bias) {
                d_bias[v] = 0;
                for (int64_t k = from; k < to; ++k) d_bias[v] += coefficients[order[k]];
            }
        }
    });
}

}  // namespace

// C interface. With `half`, matrices hold bf16 instead of float32. Functions return false (or null) when memory runs
// out.
extern "C" {

int multiplies_bf16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

// hidden [R, width]; rows [tokens] of it, text b having rows[offsets[b]:offsets[b+1]]; weight [vocabulary, width];
// bias float32 [vocabulary] or null. Writes indptr [texts + 1] and returns a handle for `max_collect`.
void* max_forward(const void* hidden, const int64_t* rows, const int64_t* offsets, int64_t texts, const void* weight,
                  const float* bias, int64_t vocabulary, int64_t width, int half, int threads, int64_t* indptr) {
    try {
        const auto run = [&](auto kernel) {
            using Kernel = decltype(kernel);
            using T = typename Kernel::T;
            return max_forward<Kernel>((const T*)hidden, rows, offsets, texts, (const T*)weight, bias, vocabulary,
                                       width, threads);
        };
        Forward* result = nullptr;
#ifdef DISTILL_AMX
        if (half && Tiles::allowed()) result = run(Tiles{});
#endif
#ifdef __AVX512BF16__
        if (half && !result) result = run(Pairs{});
#endif
        if (!result) result = run(Singles{});
        indptr[0] = 0;
        for (int64_t b = 0; b < texts; ++b) {
            indptr[b + 1] = indptr[b];
            for (const ActiveTerms& active : result->groups) indptr[b + 1] += active.starts[b + 1] - active.starts[b];
        }
        return result;
    } catch (const std::exception&) {
        return nullptr;
    }
}

// Writes terms, maxima and arg-max (as indices into `rows`) in the order of indptr, and frees the handle.
void max_collect(void* handle, const int64_t* indptr, int64_t* terms, float* maxima, int64_t* tokens) {
    auto* result = (Forward*)handle;
    for (int64_t b = 0; b < result->texts; ++b) {
        int64_t out = indptr[b];
        for (const ActiveTerms& active : result->groups)
            for (int64_t k = active.starts[b]; k < active.starts[b + 1]; ++k, ++out) {
                terms[out] = active.entries[k].term;
                maxima[out] = active.entries[k].value;
                tokens[out] = active.entries[k].row;
            }
    }
    delete result;
}

// d_hidden [R, width] must be zero; d_weight [vocabulary, width] and d_bias [vocabulary] are overwritten; any of the
// three may be null. The rows of a text are adjacent in `hidden`, and the texts in order.
int max_backward(const int64_t* indptr, int64_t texts, const int64_t* rows, const int64_t* terms,
                 const float* coefficients, const void* hidden, const void* weight, int64_t vocabulary,
                 int64_t width, int half, int threads, float* d_hidden, float* d_weight, float* d_bias) {
    try {
        if (d_hidden) {
            if (half)
                hidden_gradient(indptr, texts, rows, terms, coefficients, (const uint16_t*)weight, width, d_hidden,
                                threads);
            else
                hidden_gradient(indptr, texts, rows, terms, coefficients, (const float*)weight, width, d_hidden,
                                threads);
        }
        if (d_weight || d_bias) {
            if (half)
                weight_gradient(indptr, texts, rows, terms, coefficients, (const uint16_t*)hidden, vocabulary, width,
                                d_weight, d_bias, threads);
            else
                weight_gradient(indptr, texts, rows, terms, coefficients, (const float*)hidden, vocabulary, width,
                                d_weight, d_bias, threads);
        }
        return 1;
    } catch (const std::exception&) {
        return 0;
    }
}
}
