import django.core.validators
from django.db import migrations, models

import events.models


class Migration(migrations.Migration):
    dependencies = [("events", "0002_compress")]

    operations = [
        migrations.AlterModelOptions(
            name="channel",
            options={
                "ordering": ["name"],
                "permissions": [("publish_to_channel", "Can publish to channels")],
                "verbose_name": "channel",
                "verbose_name_plural": "channels",
            },
        ),
        migrations.AlterField(
            model_name="channel",
            name="policy",
            field=models.CharField(
                blank=True,
                help_text=(
                    "For “Policy”: the dotted path of a function (user, channel_name) -> bool. "
                    "“events.policies.own_user” opens user.5 to the user with the primary key 5."
                ),
                max_length=200,
                verbose_name="policy",
            ),
        ),
        migrations.CreateModel(
            name="PublishKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        help_text="Who or what publishes with it, e.g. “till in the foyer”.",
                        max_length=200,
                        verbose_name="name",
                    ),
                ),
                (
                    "digest",
                    events.models.ExactCharField(editable=False, max_length=64, unique=True, verbose_name="digest"),
                ),
                ("prefix", models.CharField(editable=False, max_length=20, verbose_name="token")),
                (
                    "channels",
                    models.TextField(
                        help_text=(
                            "Where it may publish: names of channels, one on each line. A last * stands for every "
                            "channel that begins with what stands before it, * alone for all."
                        ),
                        validators=[events.models.validate_key_channels],
                        verbose_name="channels",
                    ),
                ),
                (
                    "is_active",
                    models.BooleanField(
                        default=True,
                        help_text="Off: nobody can publish with it, from now on.",
                        verbose_name="switched on",
                    ),
                ),
                (
                    "expires_at",
                    models.DateTimeField(
                        blank=True, help_text="When it ceases to work. Empty: never.", null=True, verbose_name="expires"
                    ),
                ),
                (
                    "per_minute",
                    models.PositiveIntegerField(
                        blank=True,
                        default=600,
                        help_text=(
                            "How many requests it may make in a minute. Further ones are told to wait. Empty: any "
                            "number."
                        ),
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="requests per minute",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="made")),
                (
                    "last_used_at",
                    models.DateTimeField(
                        editable=False,
                        help_text="When something was last published, to the minute.",
                        null=True,
                        verbose_name="last used",
                    ),
                ),
            ],
            options={
                "verbose_name": "publish key",
                "verbose_name_plural": "publish keys",
                "ordering": ["name", "pk"],
            },
        ),
    ]
