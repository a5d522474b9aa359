from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("events", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="channel",
            name="compress",
            field=models.BooleanField(
                default=False,
                help_text=(
                    "Send events as gzip to clients that accept it. Worth it for events of some hundred bytes and more; "
                    "not for channels that mix secrets with text of strangers in one event."
                ),
                verbose_name="compressed",
            ),
        ),
    ]
