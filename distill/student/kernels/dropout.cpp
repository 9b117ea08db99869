// Dropout on CPUs. The mask is a function of (seed, position), so that the backward recomputes it instead of storing
// it: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), 16 bits per value.

#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "threads.h"

namespace {

constexpr int LANES = 16;               // counters processed together
constexpr int BLOCK = 8 * LANES;        // values per LANES counters: each gives four words of two halves
constexpr int64_t PIECE = 256 * BLOCK;  // values per work item of a thread

inline void store(float* out, float value) { *out = value; }
inline void store(uint16_t* out, float value) {  // to bf16, rounding to nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    *out = value == value ? uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) : uint16_t(0x7FC0);
}

// The four Philox words of the counters first, first + 1, ...: words[word][lane].
inline void philox(uint64_t first, uint64_t seed, uint32_t (&words)[4][LANES]) {
    for (int i = 0; i < LANES; ++i) {
        words[0][i] = uint32_t(first + i);
        words[1][i] = uint32_t((first + i) >> 32);
        words[2][i] = words[3][i] = 0;
    }
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < LANES; ++i) {
            const uint64_t left = uint64_t(0xD2511F53) * words[0][i], right = uint64_t(0xCD9E8D57) * words[2][i];
            words[0][i] = uint32_t(right >> 32) ^ words[1][i] ^ key0;
            words[1][i] = uint32_t(right);
            words[2][i] = uint32_t(left >> 32) ^ words[3][i] ^ key1;
            words[3][i] = uint32_t(left);
        }
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

template <class T>
void dropout(const T* in, T* out, int64_t count, uint64_t seed, uint32_t threshold, float scale, int threads) {
    parallel((count + PIECE - 1) / PIECE, threads, [=](int64_t piece) {
        const int64_t end = std::min(count, (piece + 1) * PIECE);
        for (int64_t start = piece * PIECE; start < end; start += BLOCK) {
            uint32_t words[4][LANES];
            philox(uint64_t(start / 8), seed, words);
            float factors[BLOCK];
            for (int word = 0; word < 4; ++word)
                for (int half = 0; half < 2; ++half)
                    for (int i = 0; i < LANES; ++i)
                        factors[(2 * word + half) * LANES + i] =
                            (words[word][i] >> 16 * half & 0xFFFF) >= threshold ? scale : 0.0f;
            if (end - start >= BLOCK)
                for (int i = 0; i < BLOCK; ++i) store(out + start + i, to_float(in[start + i]) * factors[i]);
            else
                for (int64_t i = 0; i < end - start; ++i)
                    store(out + start + i, to_float(in[start + i]) * factors[i]);
        }
    });
}

}  // namespace

// out[i] = in[i] * scale where the 16 bits of position i are at least `threshold`, else zero (NaN and infinity stay);
// `half`: bf16 instead of float32. `in` may be `out`.
extern "C" void dropout(const void* in, void* out, int64_t count, uint64_t seed, uint32_t threshold, float scale,
                        int half, int threads) {
    if (half)
        dropout((const uint16_t*)in, (uint16_t*)out, count, seed, threshold, scale, threads);
    else
        dropout((const float*)in, (float*)out, count, seed, threshold, scale, threads);
}
