from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="SetupStep",
            fields=[
                ("name", models.CharField(max_length=100, primary_key=True, serialize=False)),
                ("done_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
    ]
