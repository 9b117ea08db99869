// Exact top-k search of sparse vectors over posting lists in blocks of passages (see postings.py for the layout).
//
// The scores of a block are accumulated in an array that fits the second-level cache, one posting list after another in the
// order of the query's terms, so that a score has the same bits on every machine and in every division of the work.
// A block is read for a group of queries at a time. Where the largest weights of a block show that most postings cannot
// lift a passage above the query's k-th score, only the rest is accumulated and the few passages left are scored by
// looking their places up (MaxScore: Turtle and Flood, 1995, here with the maxima of a block).

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "threads.h"

namespace {

constexpr int64_t kGroup = 64;        // queries for which a block is read at a time
constexpr float kSlack = 2e-7f;       // on sums of upper bounds, per term, against rounding
constexpr int64_t kFew = 16;          // passages in a block for each posting, below which not all scores are looked at
constexpr int64_t kLookUp = 12;       // postings accumulated in the time of one look-up in a posting list

}  // namespace

extern "C" {

// The postings of a term in a block.
struct Entry {
    uint32_t start;  // the first, counted from the block's first
    float largest;   // weight
    uint16_t block;
    uint16_t count;  // less one
};

// A run of consecutive passages: P postings in B blocks of `width` passages, and E entries, one for each term of a block.
struct Segment {
    int64_t passages, width;
    const uint32_t* entries;  // [vocabulary + 1]: the entries of each term
    const Entry* entry;       // [E], of a term by block
    const int64_t* first;     // [B + 1]: first posting of each block
    const uint16_t* place;    // [P]: of the passage in its block, ascending within an entry
    const float* weight;      // [P]
};

// Queries in compressed rows.
struct Queries {
    int64_t count;
    const int64_t* indptr;  // [count + 1]
    const int32_t* term;
    const float* weight;
};
}

namespace {

// A hit in one number that is greater for a better one: by score, then by the lower row. Scores are positive, so their
// bits are in their order.
using Hit = uint64_t;

Hit hit_of(float score, int64_t row) {
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    return static_cast<Hit>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(row));
}

float score_of(Hit hit) {
    const uint32_t bits = hit >> 32;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

int64_t row_of(Hit hit) { return 0xffffffffu - static_cast<uint32_t>(hit); }

// The best k hits among those added, of scores above `least`.
class Best {
  public:
    Best(int64_t k, float least) : k_(k), limit_(std::max<int64_t>(2 * k, 64)), worst_(hit_of(least, 0)) {}

    // Only a better score matters, for rows after those added.
    float threshold() const { return score_of(worst_); }

    void add(float score, int64_t row) {
        const Hit hit = hit_of(score, row);
        if (hit <= worst_) return;
        hits_.push_back(hit);
        if (static_cast<int64_t>(hits_.size()) >= limit_) cut();
    }

    void add(const Best& other) { hits_.insert(hits_.end(), other.hits_.begin(), other.hits_.end()); }

    const std::vector<Hit>& sorted() {
        if (static_cast<int64_t>(hits_.size()) > k_) cut();
        std::sort(hits_.begin(), hits_.end(), std::greater<Hit>());
        return hits_;
    }

  private:
    void cut() {
        std::nth_element(hits_.begin(), hits_.begin() + (k_ - 1), hits_.end(), std::greater<Hit>());
        hits_.resize(k_);
        worst_ = hits_.back();
    }

    int64_t k_, limit_;
    Hit worst_;
    std::vector<Hit> hits_;
};

// The postings of one query term in one block.
struct List {
    const uint16_t* place;
    const float* weight;
    int64_t count;
    float factor;  // of the query
    float bound;   // of a product
};

void accumulate(const List& list, float* __restrict scores) {
    const uint16_t* __restrict place = list.place;
    const float* __restrict weight = list.weight;
    const float factor = list.factor;
    int64_t i = 0;
    for (; i + 4 <= list.count; i += 4) {  // the places of a list differ: the four additions are independent
        uint64_t four;
        std::memcpy(&four, place + i, sizeof four);
        scores[four & 0xffff] += factor * weight[i];
        scores[four >> 16 & 0xffff] += factor * weight[i + 1];
        scores[four >> 32 & 0xffff] += factor * weight[i + 2];
        scores[four >> 48] += factor * weight[i + 3];
    }
    for (; i < list.count; ++i) scores[place[i]] += factor * weight[i];
}

// Calls found(place, score) for every score above the threshold, and sets all scores to zero.
template <class Found>
void drain(float* scores, int64_t width, float threshold, Found found) {
    int64_t i = 0;
#ifdef __AVX2__
    for (; i + 16 <= width; i += 16) {
        const __m256 low = _mm256_loadu_ps(scores + i), high = _mm256_loadu_ps(scores + i + 8);
        const __m256 least = _mm256_set1_ps(threshold);
        unsigned above = _mm256_movemask_ps(_mm256_cmp_ps(low, least, _CMP_GT_OQ)) |
                         _mm256_movemask_ps(_mm256_cmp_ps(high, least, _CMP_GT_OQ)) << 8;
        for (; above; above &= above - 1) {
            const int64_t at = i + __builtin_ctz(above);
            threshold = found(at, scores[at]);
        }
        _mm256_storeu_ps(scores + i, _mm256_setzero_ps());
        _mm256_storeu_ps(scores + i + 8, _mm256_setzero_ps());
    }
#endif
    for (; i < width; ++i) {
        if (scores[i] > threshold) threshold = found(i, scores[i]);
        scores[i] = 0;
    }
}

// As `drain` of few scores: those at the places of some lists, in any order.
template <class Found>
void drain(const List* lists, size_t count, float* scores, Found found) {
    for (size_t i = 0; i < count; ++i) {
        for (int64_t at = 0; at < lists[i].count; ++at) {
            float& score = scores[lists[i].place[at]];
            if (score != 0) found(lists[i].place[at], score);
            score = 0;
        }
    }
}

// The weight of a place in a list, 0 if it is not there. `from`: where to begin, moved on: places are asked in order.
float look_up(const List& list, uint16_t place, int64_t& from) {
    int64_t step = 1, low = from;
    while (low + step < list.count && list.place[low + step] < place) {
        low += step;
        step *= 2;
    }
    const uint16_t* end = list.place + std::min(low + step + 1, list.count);
    from = std::lower_bound(list.place + low, end, place) - list.place;
    return from < list.count && list.place[from] == place ? list.weight[from] : 0;
}

// Searches a range of blocks for one query after another.
class Searcher {
  public:
    Searcher(const Queries& queries, int64_t width) : queries_(queries), scores_(width, 0.0f) {}

    void search(const Segment& segment, int64_t block, int64_t row, const int64_t* cursors, int64_t query, Best& best) {
        gather(segment, block, cursors, query);
        if (lists_.empty() || bound_ * slack() <= best.threshold()) return;
        const int64_t width = std::min(segment.width, segment.passages - block * segment.width);
        if (total_ * kFew > width && best.threshold() > 0 && prune(width, row, best)) return;
        score(lists_.data(), lists_.size(), total_, width, best.threshold(), [&](int64_t place, float score) {
            best.add(score, row + place);
            return best.threshold();
        });
    }

  private:
    // More than the rounding of a sum over the lists can be, relative to the sum: terms * 2^-24 on either side.
    float slack() const { return 1 + kSlack * static_cast<float>(lists_.size() + 1); }

    void gather(const Segment& segment, int64_t block, const int64_t* cursors, int64_t query) {
        lists_.clear();
        total_ = 0;
        bound_ = 0;
        const int64_t begin = queries_.indptr[query], end = queries_.indptr[query + 1];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t cursor = cursors[i - begin];
            if (cursor == segment.entries[queries_.term[i] + 1]) continue;
            const Entry entry = segment.entry[cursor];
            if (entry.block != block) continue;
            const int64_t at = segment.first[block] + entry.start, count = entry.count + 1;
            const float factor = queries_.weight[i];
            lists_.push_back({segment.place + at, segment.weight + at, count, factor, factor * entry.largest});
            total_ += count;
            bound_ += factor * entry.largest;
            __builtin_prefetch(segment.place + at);
            __builtin_prefetch(segment.weight + at);
        }
    }

    // Calls found(place, score) for the sums of lists with `total` postings; it returns the new threshold, which scores
    // have to exceed where there are many.
    template <class Found>
    void score(const List* lists, size_t count, int64_t total, int64_t width, float threshold, Found found) {
        for (size_t i = 0; i < count; ++i) accumulate(lists[i], scores_.data());
        if (total * kFew > width) {
            drain(scores_.data(), width, threshold, found);
        } else {
            drain(lists, count, scores_.data(), found);
        }
    }

    // Scores the block without its least lists, if that is less work; false: nothing has been done.
    bool prune(int64_t width, int64_t row, Best& best) {
        sorted_ = lists_;
        std::sort(sorted_.begin(), sorted_.end(), [](const List& one, const List& other) {
            return one.bound < other.bound;
        });
        float rest = 0;
        int64_t left_out = 0;
        size_t needed = 0;
        for (; needed < sorted_.size() && (rest + sorted_[needed].bound) * slack() <= best.threshold(); ++needed) {
            rest += sorted_[needed].bound;
            left_out += sorted_[needed].count;
        }
        if (2 * left_out < total_) return false;
        const float least = std::max(best.threshold() - rest * slack(), 0.0f) / slack();
        places_.clear();
        score(sorted_.data() + needed, sorted_.size() - needed, total_ - left_out, width, least,
              [&](int64_t place, float score) {
                  if (score > least) places_.push_back(static_cast<uint16_t>(place));
                  return least;
              });
        if (static_cast<int64_t>(places_.size() * lists_.size()) * kLookUp > left_out) return false;
        std::sort(places_.begin(), places_.end());  // for the look-ups; a block with few postings gives them by list
        from_.assign(lists_.size(), 0);
        for (const uint16_t place : places_) {
            float score = 0;
            for (size_t i = 0; i < lists_.size(); ++i) {
                const float weight = look_up(lists_[i], place, from_[i]);
                if (weight != 0) score += lists_[i].factor * weight;
            }
            if (score > 0) best.add(score, row + place);
        }
        return true;
    }

    const Queries& queries_;
    std::vector<float> scores_;
    std::vector<List> lists_;
    int64_t total_ = 0;  // postings
    float bound_ = 0;    // of a score
    std::vector<List> sorted_;
    std::vector<uint16_t> places_;
    std::vector<int64_t> from_;
};

// The first entry of a term that is not before a block.
int64_t find(const Segment& segment, int32_t term, int64_t block) {
    const Entry* from = segment.entry + segment.entries[term];
    const Entry* end = segment.entry + segment.entries[term + 1];
    return std::lower_bound(from, end, block, [](const Entry& entry, int64_t at) { return entry.block < at; }) -
           segment.entry;
}

// Moves the cursors of queries to a block: to the first entry of each term that is not before it.
void seek(const Segment& segment, int64_t block, const Queries& queries, int64_t first, int64_t last, bool jump,
          std::vector<int64_t>& cursors) {
    const int64_t base = queries.indptr[first];
    for (int64_t i = base; i < queries.indptr[last]; ++i) {
        const int64_t end = segment.entries[queries.term[i] + 1];
        int64_t& cursor = cursors[i - base];
        if (jump) {
            cursor = find(segment, queries.term[i], block);
        } else if (cursor < end && segment.entry[cursor].block < block) {
            ++cursor;
        }
    }
}

int64_t blocks_of(const Segment& segment) { return (segment.passages + segment.width - 1) / segment.width; }

}  // namespace

extern "C" {

// Writes the k best rows of each query, best first, -1 after the last, and their scores. Only scores above `least` of the
// query count. Returns 0 if memory runs out.
int search(const Segment* segments, int64_t count, const Queries* queries, const float* least, int64_t k, int threads,
           int64_t* rows, float* scores) try {
    std::vector<int64_t> first_row(count + 1, 0), first_block(count + 1, 0);
    int64_t width = 0;
    for (int64_t i = 0; i < count; ++i) {
        first_row[i + 1] = first_row[i] + segments[i].passages;
        first_block[i + 1] = first_block[i] + blocks_of(segments[i]);
        width = std::max(width, segments[i].width);
    }
    const int64_t blocks = first_block[count];
    const int64_t size = std::max<int64_t>(1, std::min(kGroup, (queries->count + threads - 1) / threads));
    const int64_t groups = (queries->count + size - 1) / size;
    const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(blocks, (threads + groups - 1) / groups));
    std::vector<std::vector<Best>> found(groups * ranges);
    parallel(groups * ranges, threads, [&](int64_t item) {
        const int64_t group = item / ranges, range = item % ranges;
        const int64_t first = group * size, last = std::min(queries->count, first + size);
        std::vector<Best> best;
        for (int64_t query = first; query < last; ++query) best.emplace_back(k, least[query]);
        std::vector<int64_t> cursors(queries->indptr[last] - queries->indptr[first]);
        Searcher searcher(*queries, width);
        const int64_t begin = blocks * range / ranges, end = blocks * (range + 1) / ranges;
        int64_t s = std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin() - 1;
        for (int64_t at = begin; at < end; ++at) {
            while (at == first_block[s + 1]) ++s;
            const int64_t block = at - first_block[s], row = first_row[s] + block * segments[s].width;
            seek(segments[s], block, *queries, first, last, at == begin || block == 0, cursors);
            for (int64_t query = first; query < last; ++query) {
                const int64_t* own = cursors.data() + (queries->indptr[query] - queries->indptr[first]);
                searcher.search(segments[s], block, row, own, query, best[query - first]);
            }
        }
        found[item] = std::move(best);
    });
    for (int64_t query = 0; query < queries->count; ++query) {
        const int64_t group = query / size;
        Best& best = found[group * ranges][query % size];
        for (int64_t range = 1; range < ranges; ++range) best.add(found[group * ranges + range][query % size]);
        int64_t rank = 0;
        for (const Hit& hit : best.sorted()) {
            rows[query * k + rank] = row_of(hit);
            scores[query * k + rank++] = score_of(hit);
        }
        for (; rank < k; ++rank) {
            rows[query * k + rank] = -1;
            scores[query * k + rank] = 0;
        }
    }
    return 1;
} catch (const std::bad_alloc&) {
    return 0;
}

// Scores pairs of a query and a row, summed as `search` does.
int score(const Segment* segments, int64_t count, const Queries* queries, int64_t pairs, const int64_t* query_of,
          const int64_t* rows, int threads, float* scores) try {
    std::vector<int64_t> first_row(count + 1, 0);
    for (int64_t i = 0; i < count; ++i) first_row[i + 1] = first_row[i] + segments[i].passages;
    constexpr int64_t slab = 1024;
    parallel((pairs + slab - 1) / slab, threads, [&](int64_t item) {
        for (int64_t pair = item * slab; pair < std::min(pairs, (item + 1) * slab); ++pair) {
            const int64_t s = std::upper_bound(first_row.begin(), first_row.end(), rows[pair]) - first_row.begin() - 1;
            const Segment& segment = segments[s];
            const int64_t block = (rows[pair] - first_row[s]) / segment.width;
            const uint16_t place = (rows[pair] - first_row[s]) % segment.width;
            float sum = 0;
            for (int64_t i = queries->indptr[query_of[pair]]; i < queries->indptr[query_of[pair] + 1]; ++i) {
                const int64_t found = find(segment, queries->term[i], block);
                if (found == segment.entries[queries->term[i] + 1]) continue;
                const Entry entry = segment.entry[found];
                if (entry.block != block) continue;
                const int64_t at = segment.first[block] + entry.start;
                const uint16_t* end = segment.place + at + entry.count + 1;
                const uint16_t* posting = std::lower_bound(segment.place + at, end, place);
                if (posting == end || *posting != place) continue;
                sum += queries->weight[i] * segment.weight[posting - segment.place];
            }
            scores[pair] = sum;
        }
    });
    return 1;
} catch (const std::bad_alloc&) {
    return 0;
}
}
