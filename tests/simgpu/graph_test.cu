// CUDA graphs by stream capture: replay, update, memory of their own, and what a capture forbids.
#include "streams.h"

namespace {

TEST(Graphs, CaptureAndReplay) {
  cudaStream_t stream, side;
  cudaEvent_t forked, joined;
  CUDA_OK(cudaStreamCreate(&stream));
  CUDA_OK(cudaStreamCreate(&side));
  CUDA_OK(cudaEventCreate(&forked));
  CUDA_OK(cudaEventCreate(&joined));
  DeviceArray<int> in(std::vector<int>(kSize, 0)), out(std::vector<int>(kSize, 0)),
      other(std::vector<int>(kSize, 0));
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  fill<<<4, 256, 0, stream>>>(in, 5, kSize);
  CUDA_OK(cudaEventRecord(forked, stream));
  CUDA_OK(cudaStreamWaitEvent(side, forked, 0));
  add<<<4, 256, 0, side>>>(in, other, kSize);
  CUDA_OK(cudaEventRecord(joined, side));
  add<<<4, 256, 0, stream>>>(in, out, kSize);
  CUDA_OK(cudaStreamWaitEvent(stream, joined, 0));
  cudaStreamCaptureStatus status;
  CUDA_OK(cudaStreamIsCapturing(stream, &status));
  EXPECT_EQ(cudaStreamCaptureStatusActive, status);
  cudaGraph_t graph;
  CUDA_OK(cudaStreamEndCapture(stream, &graph));
  EXPECT_EQ(std::vector<int>(kSize), out.host());  // nothing has run
  cudaGraphExec_t exec;
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < 3; ++i) CUDA_OK(cudaGraphLaunch(exec, stream));
  CUDA_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(std::vector<int>(kSize, 15), out.host());
  EXPECT_EQ(std::vector<int>(kSize, 15), other.host());
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
  for (cudaStream_t s : {stream, side}) CUDA_OK(cudaStreamDestroy(s));
  for (cudaEvent_t e : {forked, joined}) CUDA_OK(cudaEventDestroy(e));
}
TEST(Graphs, UnjoinedCaptureIsAnError) {
  cudaStream_t stream, side;
  cudaEvent_t forked;
  CUDA_OK(cudaStreamCreate(&stream));
  CUDA_OK(cudaStreamCreate(&side));
  CUDA_OK(cudaEventCreate(&forked));
  DeviceArray<int> in(std::vector<int>(kSize, 0));
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  fill<<<4, 256, 0, stream>>>(in, 5, kSize);
  CUDA_OK(cudaEventRecord(forked, stream));
  CUDA_OK(cudaStreamWaitEvent(side, forked, 0));
  fill<<<4, 256, 0, side>>>(in, 6, kSize);
  cudaGraph_t graph;
  EXPECT_EQ(cudaErrorStreamCaptureUnjoined, cudaStreamEndCapture(stream, &graph));
  cudaGetLastError();
  for (cudaStream_t s : {stream, side}) CUDA_OK(cudaStreamDestroy(s));
  CUDA_OK(cudaEventDestroy(forked));
}

struct Captured {
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaSuccess;
  template <class F>
  explicit Captured(F&& work, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    cudaStream_t stream;
    EXPECT_EQ(cudaSuccess, cudaStreamCreate(&stream));
    EXPECT_EQ(cudaSuccess, cudaStreamBeginCapture(stream, mode));
    work(stream);
    error = cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
    EXPECT_EQ(cudaSuccess, cudaStreamDestroy(stream));
  }
  ~Captured() {
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

TEST(Graphs, Update) {
  DeviceArray<int> out(std::vector<int>(kSize, 0)), other(std::vector<int>(kSize, 0));
  const Captured five([&](cudaStream_t s) { fill<<<4, 256, 0, s>>>(out, 5, kSize); }),
      six([&](cudaStream_t s) { fill<<<2, 512, 0, s>>>(other, 6, kSize); }),
      copy([&](cudaStream_t s) { cudaMemcpyAsync(out, other, 4, cudaMemcpyDeviceToDevice, s); }),
      two([&](cudaStream_t s) {
        fill<<<4, 256, 0, s>>>(out, 5, kSize);
        fill<<<4, 256, 0, s>>>(out, 6, kSize);
      });
  cudaGraphExec_t exec;
  CUDA_OK(cudaGraphInstantiate(&exec, five.graph, 0));
  CUDA_OK(cudaGraphLaunch(exec, nullptr));
  EXPECT_EQ(std::vector<int>(kSize, 5), out.host());
  cudaGraphExecUpdateResultInfo info;
  CUDA_OK(cudaGraphExecUpdate(exec, six.graph, &info));
  CUDA_OK(cudaGraphLaunch(exec, nullptr));
  EXPECT_EQ(std::vector<int>(kSize, 6), other.host());
  EXPECT_EQ(cudaErrorGraphExecUpdateFailure, cudaGraphExecUpdate(exec, copy.graph, &info));
  EXPECT_EQ(cudaGraphExecUpdateErrorNodeTypeChanged, info.result);
  EXPECT_EQ(cudaErrorGraphExecUpdateFailure, cudaGraphExecUpdate(exec, two.graph, &info));
  EXPECT_EQ(cudaGraphExecUpdateErrorTopologyChanged, info.result);
  cudaGetLastError();
  CUDA_OK(cudaGraphExecDestroy(exec));
}
TEST(Graphs, MemoryOfTheirOwn) {
  DeviceArray<int> out(std::vector<int>(kSize, 0));
  const size_t leaks = simgpu::leaks().size();
  {
    const Captured graph([&](cudaStream_t s) {
      int* scratch;
      cudaMallocAsync(&scratch, kSize * 4, s);
      fill<<<4, 256, 0, s>>>(scratch, 3, kSize);
      add<<<4, 256, 0, s>>>(scratch, out, kSize);
      cudaFreeAsync(scratch, s);
    });
    cudaGraphExec_t exec;
    CUDA_OK(cudaGraphInstantiate(&exec, graph.graph, 0));
    for (int i = 0; i < 3; ++i) CUDA_OK(cudaGraphLaunch(exec, nullptr));
    EXPECT_EQ(std::vector<int>(kSize, 9), out.host());
    CUDA_OK(cudaGraphExecDestroy(exec));
  }
  EXPECT_EQ(leaks, simgpu::leaks().size());
}
// Two branches that both write: an order of the seed's shows that no edge joins them.
TEST(Graphs, NodesRunInEveryLegalOrder) {
  const auto last_writer = [](bool edge) {
    return count_orders([edge] {
      cudaStream_t side;
      cudaEvent_t forked, joined;
      cudaStreamCreate(&side);
      cudaEventCreate(&forked);
      cudaEventCreate(&joined);
      DeviceArray<int> out(std::vector<int>(kSize, 0));
      const Captured graph([&](cudaStream_t s) {
        cudaEventRecord(forked, s);
        cudaStreamWaitEvent(side, forked, 0);
        fill<<<4, 256, 0, side>>>(out, 1, kSize);
        cudaEventRecord(joined, side);
        if (edge) cudaStreamWaitEvent(s, joined, 0);
        fill<<<4, 256, 0, s>>>(out, 2, kSize);
        if (!edge) cudaStreamWaitEvent(s, joined, 0);
      });
      cudaGraphExec_t exec;
      cudaGraphInstantiate(&exec, graph.graph, 0);
      cudaGraphLaunch(exec, nullptr);
      const bool two = out.host()[0] == 2;
      cudaGraphExecDestroy(exec);
      cudaStreamDestroy(side);
      for (cudaEvent_t e : {forked, joined}) cudaEventDestroy(e);
      return two;
    });
  };
  EXPECT_EQ(20, last_writer(true));
  EXPECT_LT(last_writer(false), 20);
}
TEST(Graphs, WhatIsNotSimulatedIsNamed) {
  DeviceArray<int> out(std::vector<int>(kSize, 0));
  const Captured graph([&](cudaStream_t s) { fill<<<4, 256, 0, s>>>(out, 5, kSize); });
  cudaGraphNode_t nodes[1];
  size_t count = 0;
  CUDA_OK(cudaGraphGetNodes(graph.graph, nullptr, &count));
  EXPECT_EQ(1u, count);
  testing::internal::CaptureStderr();
  EXPECT_EQ(cudaErrorNotSupported, cudaGraphGetNodes(graph.graph, nodes, &count));
  EXPECT_NE(std::string::npos, testing::internal::GetCapturedStderr().find("cudaGraphGetNodes"));
  cudaGetLastError();
}
TEST(Graphs, WhatACaptureForbids) {
  void* p = nullptr;
  const Captured allocates(
      [&](cudaStream_t) { EXPECT_EQ(cudaErrorStreamCaptureUnsupported, cudaMalloc(&p, 4)); });
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, allocates.error);
  const Captured relaxed([&](cudaStream_t) { EXPECT_EQ(cudaSuccess, cudaMalloc(&p, 4)); },
                         cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaSuccess, relaxed.error);
  CUDA_OK(cudaFree(p));
  const Captured synchronises(
      [&](cudaStream_t) { EXPECT_EQ(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize()); });
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, synchronises.error);
  const Captured waits(
      [&](cudaStream_t s) { EXPECT_EQ(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(s)); });
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, waits.error);
  DeviceArray<int> out(std::vector<int>(kSize, 0));
  const Captured legacy([&](cudaStream_t) {
    fill<<<1, 32>>>(out, 1, 32);
    EXPECT_EQ(cudaErrorStreamCaptureImplicit, cudaGetLastError());
  });
  EXPECT_EQ(cudaErrorStreamCaptureInvalidated, legacy.error);
  const Captured queries([&](cudaStream_t s) {
    cudaEvent_t event;
    EXPECT_EQ(cudaSuccess, cudaEventCreate(&event));
    EXPECT_EQ(cudaSuccess, cudaEventRecord(event, s));
    EXPECT_EQ(cudaErrorCapturedEvent, cudaEventQuery(event));
    EXPECT_EQ(cudaSuccess, cudaEventDestroy(event));
  });
  EXPECT_EQ(cudaSuccess, queries.error);
}

}  // namespace
