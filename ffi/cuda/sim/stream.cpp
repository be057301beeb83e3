// Streams and events.
#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "driver.h"

namespace sim {

std::set<Stream*>& streams = *new std::set<Stream*>;
std::set<Event*>& events = *new std::set<Event*>;

namespace {

Stream* null_stream = nullptr;

Event* event_of(CUevent handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  return events.count(event) ? event : nullptr;
}

Work waiting_for(SignalRef signal) {
  return [signal] {
    Lock lock(mutex);
    wait_for(lock, signal);
    return CUDA_SUCCESS;
  };
}

void push(Stream& stream, Work work) {
  stream.last = std::make_shared<Signal>();
  stream.queue.push_back({std::move(work), stream.last});
  changed.notify_all();
}

void capture(Stream& stream, Work work) {
  auto& nodes = stream.capture->graph.nodes;
  nodes.push_back({std::move(work), std::exchange(stream.tails, {nodes.size()})});
}

}  // namespace

Stream::Stream(unsigned flags) : flags(flags), worker([this] { run(); }) {}

Stream::~Stream() {
  {
    Lock lock(mutex);
    stopping = true;
    changed.notify_all();
  }
  worker.join();
}

void Stream::run() {
  sigset_t blocked;  // signals to the host's program are not for this thread
  sigfillset(&blocked);
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGRTMIN + 6}) sigdelset(&blocked, signal);
  pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  Lock lock(mutex);
  for (;;) {
    changed.wait(lock, [&] { return stopping || !queue.empty(); });
    if (queue.empty()) return;
    const Item item = std::move(queue.front());
    queue.pop_front();
    if (item.work && !device_error) {
      const long long seed = setting("CUDA_SIM_SEED", 0);
      lock.unlock();
      if (seed > 0) {  // streams overtake each other
        random.seed(static_cast<unsigned>(seed) + random());
        if (random() % 4 == 0) usleep(random() % 200);
      }
      const CUresult result = item.work();
      lock.lock();
      if (result && !device_error) device_error = result;
    }
    item.done->time = std::chrono::steady_clock::now();
    item.done->done = true;
    changed.notify_all();
  }
}

Stream* stream_of(CUstream handle) {
  if (reinterpret_cast<uintptr_t>(handle) <= 1) {
    if (!null_stream) streams.insert(null_stream = new Stream(0));
    return null_stream;
  }
  auto* stream = reinterpret_cast<Stream*>(handle);
  return streams.count(stream) ? stream : nullptr;
}

void wait_for(Lock& lock, const SignalRef& signal) {
  changed.wait(lock, [&] { return signal->done; });
}

void wait_for_all(Lock& lock) {
  std::vector<SignalRef> signals;
  for (const Stream* stream : streams) signals.push_back(stream->last);
  for (const SignalRef& signal : signals) wait_for(lock, signal);
}

bool capture_forbids() {
  return std::any_of(captures.begin(), captures.end(), [](const Capture* capture) {
    return capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
           (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && capture->thread == std::this_thread::get_id());
  });
}

CUresult submit(Stream* stream, Work work) {
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) return capture(*stream, std::move(work)), CUDA_SUCCESS;
  // The null stream and the blocking streams wait for each other.
  if (stream == null_stream) {
    if (capture_forbids()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    for (const Stream* other : streams) {
      if (other != stream && !(other->flags & CU_STREAM_NON_BLOCKING) && !other->last->done)
        push(*stream, waiting_for(other->last));
    }
  } else if (null_stream && !(stream->flags & CU_STREAM_NON_BLOCKING) && !null_stream->last->done) {
    push(*stream, waiting_for(null_stream->last));
  }
  push(*stream, std::move(work));
  return CUDA_SUCCESS;
}

void release_streams(Lock& lock) {
  std::set<Stream*> ended;
  ended.swap(streams);
  null_stream = nullptr;
  lock.unlock();
  for (const Stream* stream : ended) delete stream;
  lock.lock();
  for (const Event* event : events) delete event;
  events.clear();
}

}  // namespace sim

using namespace sim;

API cuStreamCreate(CUstream* stream, unsigned flags) {
  ENTER;
  auto* made = new Stream(flags);
  streams.insert(made);
  *stream = reinterpret_cast<CUstream>(made);
  return CUDA_SUCCESS;
}
API cuStreamDestroy_v2(CUstream handle) {
  auto* stream = reinterpret_cast<Stream*>(handle);
  {
    ENTER;
    if (stream == null_stream || streams.erase(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  }
  delete stream;
  return CUDA_SUCCESS;
}
API cuStreamSynchronize(CUstream handle) {
  ENTER_UNCAPTURED;
  const Stream* stream = stream_of(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  wait_for(lock, SignalRef(stream->last));
  return device_error;
}
API cuStreamQuery(CUstream handle) {
  ENTER_UNCAPTURED;
  const Stream* stream = stream_of(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return stream->last->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
API cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  ENTER;
  return submit(stream_of(stream), [=] { return function(data), CUDA_SUCCESS; });
}

API cuEventCreate(CUevent* event, unsigned flags) {
  ENTER;
  auto* made = new Event{flags, nullptr, nullptr, {}};
  events.insert(made);
  *event = reinterpret_cast<CUevent>(made);
  return CUDA_SUCCESS;
}
API cuEventDestroy_v2(CUevent handle) {
  ENTER;
  Event* event = event_of(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  events.erase(event);
  delete event;
  return CUDA_SUCCESS;
}
API cuEventRecord(CUevent handle, CUstream stream_handle) {
  ENTER;
  Event* event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
  event->capture = stream->capture;
  event->tails = stream->tails;
  if (stream->capture) return CUDA_SUCCESS;
  if (const CUresult failure = submit(stream, nullptr)) return failure;
  event->signal = stream->last;
  return CUDA_SUCCESS;
}
API cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
  ENTER;
  const Event* event = event_of(handle);
  Stream* stream = stream_of(stream_handle);
  if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!event->capture) {
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;  // outside work cannot be waited for in a graph
    return event->signal ? submit(stream, waiting_for(event->signal)) : CUDA_SUCCESS;
  }
  // Takes the stream into the capture, or joins what another stream captured.
  if (stream->capture && stream->capture != event->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  stream->capture = event->capture;
  stream->tails.insert(stream->tails.end(), event->tails.begin(), event->tails.end());
  return CUDA_SUCCESS;
}
API cuEventSynchronize(CUevent handle) {
  ENTER_UNCAPTURED;
  const Event* event = event_of(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (event->signal) wait_for(lock, SignalRef(event->signal));
  return device_error;
}
API cuEventQuery(CUevent handle) {
  ENTER_UNCAPTURED;
  const Event* event = event_of(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  return !event->signal || event->signal->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
API cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
  ENTER;
  const Event *first = event_of(from), *last = event_of(to);
  if (!first || !last || !first->signal || !last->signal) return CUDA_ERROR_INVALID_HANDLE;
  if ((first->flags | last->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
  if (!first->signal->done || !last->signal->done) return CUDA_ERROR_NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(last->signal->time - first->signal->time).count();
  return CUDA_SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) { return cuEventElapsedTime_v2(milliseconds, from, to); }
