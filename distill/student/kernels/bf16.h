// bf16 is stored as uint16_t: the upper half of a float32.

#pragma once

#include <cstdint>
#include <cstring>

inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
