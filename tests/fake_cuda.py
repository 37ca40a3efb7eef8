"""A CUDA device that computes nothing, so that the code for GPUs runs where there is none.

In a FakeTensorMode a tensor has a shape, a dtype and a device, but no numbers, and operations check
these as on a GPU. It cannot show wrong numbers, a lack of memory, or what several GPUs do.
"""
import ctypes
import os
import subprocess
import tempfile
import traceback
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), ".."))
aten = torch.ops.aten
READS_OF_A_NUMBER = (aten.item.default, aten._local_scalar_dense.default)
MATRIX_PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)

# Before it computes gradients, torch asks whether it was built for CUDA ("hooks") and which device
# and stream are in use ("guard"). A torch for the CPU alone cannot answer; this is C++ that can.
ANSWERS = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;

struct FakeHooks : at::CUDAHooksInterface {
    bool isBuilt() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
};

const Device device(DeviceType::CUDA, 0);
const Stream stream(Stream::DEFAULT, device);

struct FakeGuard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
    Device getDevice() const override { return device; }
    Device exchangeDevice(Device) const override { return device; }
    Stream getStream(Device) const noexcept override { return stream; }
    Stream exchangeStream(Stream) const noexcept override { return stream; }
};

namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, FakeGuard) }

// torch has made its hooks object already. It gets our functions: an object of C++ begins with the
// address of the table of its functions.
extern "C" void lend_hooks() {
    static FakeHooks hooks;
    *(void**)&at::detail::getCUDAHooks() = *(void**)&hooks;
}
"""


def lend_cuda():
    """Compile ANSWERS and load them into this process, for good; call it once."""
    torch_path = os.path.dirname(torch.__file__)
    # The library finds torch's functions without being linked to it, which would take a second.
    ctypes.CDLL(f"{torch_path}/lib/libtorch_cpu.so", ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "answers.cpp")
        library = os.path.join(folder, "answers.so")
        with open(source, "w") as file:
            file.write(ANSWERS)
        subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch_path}/include", source,
                        "-o", library], check=True)
        ctypes.CDLL(library).lend_hooks()


class FakeCuda(FakeTensorMode):
    """Makes tensors fake, and notes where the program would wait for the GPU, in .waits:
    {step: {"file:line", ...}}. Tests set .step.

    It would wait for a number that it reads, and for a copy to or from the GPU, unless that is a
    non-blocking one from pinned memory. (An index on the CPU is copied, too.) It would also wait
    where a shape depends on numbers, as in a selection by a boolean mask; this FakeTensorMode
    refuses by itself.
    """

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.waits = {}
        self.step = None

    def note_wait(self):
        """Note the innermost line of the project's own files that is being executed. Before the
        first step the program may wait."""
        if self.step is None:
            return
        for frame, line in traceback.walk_stack(None):   # the innermost frame comes first
            folder, name = os.path.split(frame.f_code.co_filename)
            if os.path.realpath(folder) == ROOT:
                self.waits.setdefault(self.step, set()).add(f"{name}:{line}")
                return

    def dispatch(self, operation, types, args=(), kwargs=None):
        """Stand in for FakeTensorMode.dispatch, through which each operation goes."""
        if operation in READS_OF_A_NUMBER and args[0].is_cuda:
            self.note_wait()
            return 0                                     # the number
        if operation in MATRIX_PRODUCTS:
            # FakeTensorMode lets a product of two dtypes pass; a GPU does not.
            dtypes = {argument.dtype for argument in args if isinstance(argument, torch.Tensor)}
            if len(dtypes) > 1:
                raise RuntimeError(f"{operation} of tensors of the dtypes {dtypes}")
        if operation is aten.index.Tensor and args[0].is_cuda:
            indices = [index for index in args[1] if index is not None]
            if not all(index.is_cuda for index in indices):
                self.note_wait()
        result = super().dispatch(operation, types, args, kwargs)
        if operation is aten._to_copy.default and result.is_cuda != args[0].is_cuda:
            is_pinned = hasattr(args[0], "is_in_pinned_memory")
            if not is_pinned or not kwargs.get("non_blocking", False):
                self.note_wait()
        return result


def pin_memory(tensor):
    """Stand in for Tensor.pin_memory, which needs a real GPU."""
    tensor.is_in_pinned_memory = True
    return tensor


real_numpy = torch.Tensor.numpy


def numpy_of(tensor):
    """Stand in for Tensor.numpy: the numbers of a fake tensor are all 0."""
    if not isinstance(tensor, FakeTensor):
        return real_numpy(tensor)
    assert not tensor.is_cuda, "a GPU's tensor has no numpy array"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return np.zeros(tensor.shape, dtype)


def answer_yes():
    return True


def answer_no():
    return False


@contextmanager
def fake_cuda():
    """Make a context in which .to("cuda:0") gives fake tensors -> the FakeCuda. See lend_cuda.

    A model must be made before it. torch.cuda.is_available() remains False.
    """
    stand_ins = {
        "torch.cuda.amp.common.amp_definitely_not_available": answer_no,
        "torch.cuda.is_bf16_supported": answer_yes,
        "torch.Tensor.pin_memory": pin_memory,
        "torch.Tensor.numpy": numpy_of,
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(name, stand_in))
        # There is no thread that computes the gradients of this device.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield stack.enter_context(FakeCuda())
