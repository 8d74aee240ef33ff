"""What can answer a prompt: any OpenAI-compatible API, or local weights."""

from spiritsafe.teachers._base import Answer, Teacher, TeacherError

__all__ = ["Answer", "Teacher", "TeacherError"]
