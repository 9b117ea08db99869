// Threads for the kernels, started by each call: a second OpenMP runtime would conflict with torch's.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// Runs work(item) for every item below `count`, each on the next free thread. Rethrows an exception of `work`.
template <class Work>
void parallel(int64_t count, int threads, Work work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex mutex;
    auto loop = [&] {
        try {
            for (int64_t item; (item = next.fetch_add(1)) < count;) work(item);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    try {
        for (int i = 1; i < std::min<int64_t>(threads, count); ++i) pool.emplace_back(loop);
    } catch (const std::system_error&) {  // the system grants no more threads: those already started do the work
    }
    loop();
    for (auto& thread : pool) thread.join();
    if (failure) std::rethrow_exception(failure);
}
