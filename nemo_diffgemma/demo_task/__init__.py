"""The demo task: conversations whose answers can be checked exactly."""

from nemo_diffgemma.demo_task.task import KINDS, Conversation, judged, right_answer
from nemo_diffgemma.demo_task.write import write_demo_data

__all__ = ["KINDS", "Conversation", "judged", "right_answer", "write_demo_data"]
