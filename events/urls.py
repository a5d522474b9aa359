"""The app's URLs: `path("events/", include("events.urls"))`."""

from django.urls import path

from . import api, views

app_name = "events"

urlpatterns = [
    path("", views.index, name="index"),
    path("channels/<str:name>/", views.channel, name="channel"),
    path("stream/", views.stream, name="stream"),
    path("publish/<str:name>/", api.publish, name="publish"),
    path("history/<str:name>/", api.history, name="history"),
]
