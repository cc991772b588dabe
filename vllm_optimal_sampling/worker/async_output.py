"""A step's output on its way to the host, with the step's records."""

from __future__ import annotations

from typing import Any


def with_records(base: type) -> type:
    """vLLM's `AsyncOutput`, which also brings `sampler_output.device_records` to the host where there are any.

    They go with the tokens, on the same stream and behind the same event, and become `step_records` of the output.
    """

    class AsyncOutputWithRecords(base):
        def __init__(self, *args: Any, main_stream: Any, copy_stream: Any, **kwargs: Any):
            super().__init__(*args, main_stream=main_stream, copy_stream=copy_stream, **kwargs)
            self.device_records = getattr(self.sampler_output, "device_records", None)
            if self.device_records is not None:
                self.device_records.start_copy(copy_stream, main_stream, self.copy_event)

        def get_output(self) -> Any:
            output = super().get_output()
            if self.device_records is not None:
                output.step_records = self.device_records.on_host()
            return output

    return AsyncOutputWithRecords
