// Capture of streams into graphs, and their replay.
#include <algorithm>

#include "driver.h"

namespace sim {

std::set<Capture*>& captures = *new std::set<Capture*>;

namespace {

auto& graphs = *new std::set<Graph*>;
auto& executables = *new std::set<Graph*>;

// Whether everything in the graph comes before the end of the stream that the capture began on.
bool joined(const Graph& graph, const std::vector<size_t>& tails) {
  std::vector<bool> reached(graph.nodes.size());
  for (const size_t tail : tails) reached[tail] = true;
  for (size_t i = graph.nodes.size(); i-- > 0;)
    for (const size_t before : graph.nodes[i].after)
      if (reached[i]) reached[before] = true;
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

// Runs the nodes in the order of capture; with a positive CUDA_SIM_SEED in any order that their edges allow.
CUresult replay(const Graph& graph, std::minstd_rand& random) {
  const long long seed = setting("CUDA_SIM_SEED", 0);
  if (seed <= 0) {
    for (const Graph::Node& node : graph.nodes)
      if (const CUresult failure = node.work()) return failure;
    return CUDA_SUCCESS;
  }
  random.seed(static_cast<unsigned>(seed) + random());
  std::vector<size_t> waits, ready;
  std::vector<std::vector<size_t>> followers(graph.nodes.size());
  for (size_t i = 0; i < graph.nodes.size(); i++) {
    for (const size_t before : graph.nodes[i].after) followers[before].push_back(i);
    waits.push_back(graph.nodes[i].after.size());
    if (waits[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[random() % ready.size()], ready.back());
    const size_t next = ready.back();
    ready.pop_back();
    if (const CUresult failure = graph.nodes[next].work()) return failure;
    for (const size_t follower : followers[next])
      if (--waits[follower] == 0) ready.push_back(follower);
  }
  return CUDA_SUCCESS;
}

}  // namespace

void release_graphs() {
  for (const Capture* capture : captures) delete capture;
  captures.clear();
  for (auto* all : {&graphs, &executables}) {
    for (const Graph* graph : *all) delete graph;
    all->clear();
  }
}

}  // namespace sim

using namespace sim;

API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  ENTER;
  Stream* stream = stream_of(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (reinterpret_cast<uintptr_t>(handle) <= 1 || stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  captures.insert(stream->capture = new Capture{{}, stream, mode, std::this_thread::get_id()});
  stream->tails.clear();
  return CUDA_SUCCESS;
}
API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  ENTER;
  *graph = nullptr;
  const Stream* stream = stream_of(handle);
  if (!stream || !stream->capture || stream->capture->origin != stream) return CUDA_ERROR_INVALID_HANDLE;
  Capture* ended = stream->capture;
  const bool complete = joined(ended->graph, stream->tails);
  for (Stream* other : streams)
    if (other->capture == ended) other->capture = nullptr, other->tails.clear();
  for (Event* event : events)
    if (event->capture == ended) event->capture = nullptr;
  auto* made = new Graph(std::move(ended->graph));
  captures.erase(ended);
  delete ended;
  if (!complete) return delete made, CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  graphs.insert(made);
  *graph = reinterpret_cast<CUgraph>(made);
  return CUDA_SUCCESS;
}
API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  ENTER;
  auto* source = reinterpret_cast<Graph*>(graph);
  if (!graphs.count(source)) return CUDA_ERROR_INVALID_HANDLE;
  auto* made = new Graph(*source);
  executables.insert(made);
  *executable = reinterpret_cast<CUgraphExec>(made);
  return CUDA_SUCCESS;
}
API cuGraphLaunch(CUgraphExec executable, CUstream handle) {
  ENTER;
  auto* graph = reinterpret_cast<Graph*>(executable);
  if (!executables.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
  Stream* stream = stream_of(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return submit(stream, [graph = *graph, stream] { return replay(graph, stream->random); });
}
API cuGraphDestroy(CUgraph handle) {
  ENTER;
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.erase(graph) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete graph;
  return CUDA_SUCCESS;
}
API cuGraphExecDestroy(CUgraphExec handle) {
  ENTER;
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (executables.erase(graph) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete graph;
  return CUDA_SUCCESS;
}
