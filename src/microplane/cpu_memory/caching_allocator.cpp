// Large tensors on a CPU, in pieces that are kept and reshaped. See __init__.py beside this file.

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

#include <c10/core/CPUAllocator.h>

namespace {

constexpr std::size_t UNIT = std::size_t(1) << 16;  // bytes; sizes of pieces are multiples of it

// What torch asks for small tensors as before, and has its large ones from. It lives as long as the process: tensors
// may be freed long after the last one was made.
class CachingAllocator final : public c10::Allocator {
 public:
  std::size_t least = std::size_t(1) << 18;  // bytes of a large tensor
  bool keeps = false;                        // while torch asks this allocator
  std::size_t live = 0;                      // bytes of pieces that tensors lie in
  std::size_t idle = 0;                      // bytes of pieces that are kept
  std::size_t most = 0;                      // of `live`, since memory was given back last
  std::size_t fresh = 0, reshaped = 0, reused = 0;  // how pieces were come by
  std::mutex mutex;

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes < least) return small->allocate(bytes);
    void* at = take((bytes + UNIT - 1) / UNIT * UNIT);
    return {at, at, &give, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

  // Give pieces back to the system, the largest first, until no more than `bytes` are held.
  void keep_within(std::size_t bytes) {
    while (live + idle > bytes && !kept.empty()) {
      auto last = std::prev(kept.end());
      munmap(last->second, last->first);
      idle -= last->first;
      kept.erase(last);
    }
  }

  bool put(void* at) {
    std::lock_guard<std::mutex> hold(mutex);
    auto found = used.find(at);
    if (found == used.end()) return false;
    live -= found->second;
    if (keeps) {
      idle += found->second;
      kept.emplace(found->second, at);
    } else {
      munmap(at, found->second);
    }
    used.erase(found);
    return true;
  }

  static void give(void* at);

 private:
  c10::Allocator* small = c10::GetDefaultCPUAllocator();
  std::unordered_map<void*, std::size_t> used;
  std::multimap<std::size_t, void*> kept;

  void* take(std::size_t bytes) {
    std::lock_guard<std::mutex> hold(mutex);
    std::size_t size = bytes;
    void* at = fitting(&size);
    if (!at) at = mapped(bytes);
    used[at] = size;
    live += size;
    most = std::max(most, live);
    keep_within(most + most / 64);
    return at;
  }

  // A kept piece that is at most a sixteenth larger, or the next in size, made as large as is asked for: its pages stay.
  void* fitting(std::size_t* size) {
    if (kept.empty()) return nullptr;
    auto found = kept.lower_bound(*size);
    const bool fits = found != kept.end() && found->first <= *size + *size / 16;
    if (!fits && found == kept.end()) --found;
    void* at = found->second;
    if (fits) {
      *size = found->first;
      ++reused;
    } else {
      at = mremap(at, found->first, *size, MREMAP_MAYMOVE);
      if (at == MAP_FAILED) return nullptr;
      ++reshaped;
    }
    idle -= found->first;
    kept.erase(found);
    return at;
  }

  void* mapped(std::size_t bytes) {
    ++fresh;
    void* at = map(bytes);
    if (at == MAP_FAILED) {
      keep_within(0);
      at = map(bytes);
    }
    // the words of torch's own allocator, by which a lack of memory is known
    TORCH_CHECK(at != MAP_FAILED, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                " bytes. Error code 12 (Cannot allocate memory)");
    return at;
  }

  static void* map(std::size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
};

CachingAllocator& allocator() {
  static CachingAllocator* one = new CachingAllocator;
  return *one;
}

void CachingAllocator::give(void* at) {
  if (at && !allocator().put(at)) c10::GetDefaultCPUAllocator()->raw_deleter()(at);
}

c10::Allocator* before = nullptr;  // what torch asked when this one took its place

}  // namespace

extern "C" {

void allocator_begin(int64_t least) {
  allocator().least = std::size_t(least);
  allocator().keeps = true;
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&allocator());
}

void allocator_give_back() {
  std::lock_guard<std::mutex> hold(allocator().mutex);
  allocator().keep_within(0);
  allocator().most = allocator().live;
}

void allocator_end() {
  c10::SetCPUAllocator(before);
  allocator().keeps = false;
  allocator_give_back();
}

// live, idle, most, fresh, reshaped, reused
void allocator_figures(int64_t* to) {
  CachingAllocator& of = allocator();
  std::lock_guard<std::mutex> hold(of.mutex);
  const std::size_t figures[] = {of.live, of.idle, of.most, of.fresh, of.reshaped, of.reused};
  std::copy(std::begin(figures), std::end(figures), to);
}
}
