from __future__ import annotations

from django.db import models


class SetupStep(models.Model):
    """
    Something that was set up once and is not to be set up again, whatever became of it since.

    It lives in the database beside what was set up: a new database gets everything, an old one nothing twice.
    """

    name = models.CharField(max_length=100, primary_key=True)
    done_at = models.DateTimeField(auto_now_add=True)

    objects: models.Manager[SetupStep] = models.Manager()

    def __str__(self) -> str:
        return self.name
