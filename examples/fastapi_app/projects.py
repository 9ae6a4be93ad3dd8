"""Projects, for people and for their programs."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from .auth import ApiUser, CurrentUser
from .database import Database
from .models import FIRST_PROJECT_CREATED, Project, User, UserAction
from .schemas import ProjectIn, ProjectOut

router = APIRouter(tags=["projects"])


@router.post("/projects", status_code=201, response_model=ProjectOut)
def create_project(body: ProjectIn, user: CurrentUser, database: Database) -> Project:
    """Create a project. The first one is also an action, written in the same transaction: both stand, or neither."""
    project = Project(owner_id=user.id, name=body.name)
    database.add(project)
    database.execute(
        insert(UserAction)
        .values(user_id=user.id, action_type=FIRST_PROJECT_CREATED)
        .on_conflict_do_nothing(
            index_elements=[UserAction.user_id], index_where=UserAction.action_type == FIRST_PROJECT_CREATED
        )
    )
    database.commit()
    return project


@router.get("/projects", response_model=list[ProjectOut])
def list_projects(user: CurrentUser, database: Database) -> Sequence[Project]:
    """The user's own projects, oldest first."""
    return _projects(user, database)


@router.get("/v1/projects", response_model=list[ProjectOut])
def list_projects_by_key(user: ApiUser, database: Database) -> Sequence[Project]:
    """The same for a program, which sends `X-API-Key: …`."""
    return _projects(user, database)


def _projects(user: User, database: Database) -> Sequence[Project]:
    return database.scalars(select(Project).where(Project.owner_id == user.id).order_by(Project.id)).all()
