"""The demo task: conversations with one right answer each, so that a trained model's answers can be checked exactly."""

from nemo_diffgemma.demo_task.files import write_demo_data
from nemo_diffgemma.demo_task.task import KINDS, Conversation, conversations, right_answer

__all__ = ["KINDS", "Conversation", "conversations", "right_answer", "write_demo_data"]
