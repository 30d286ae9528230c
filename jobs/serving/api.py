"""The routes of the API, version 1, and the page. What they say is what OpenAPI shows: `/v1/openapi.json`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from jobs.make import code
from jobs.serving import gateway as serving
from jobs.serving.answers import BatchAnswer, ErrorAnswer, Health, IndexAnswer, Item, Items, SearchAnswer
from jobs.serving.refusals import Refusal
from jobs.serving.settings import MOST_ANSWERS, MOST_PICTURES, SIDES

if TYPE_CHECKING:
    from jobs.serving.gateway import Gateway

PAGE = Path(__file__).with_name("page")
MOST_EXPLAINED = 7
_NAMED = 80  # characters of a name that an error repeats
_KEEP = "private, max-age=3600"
_REASONS = {
    400: "The request cannot be read.",
    401: "A bearer token is wanted.",
    404: "There is no such item, or its picture is gone.",
    408: "The upload takes too long.",
    411: "The body's length is not stated.",
    413: "The upload or the picture is too large.",
    415: "Not a form, not a picture, or a format that is not supported.",
    422: "A field is wrong, or the picture cannot be used.",
    429: "Too many searches of this client; Retry-After says when to come back.",
    431: "The request's address and headers are too large.",
    500: "The service failed.",
    502: "The store of the index or of the gallery's pictures does not answer.",
    503: "Too busy, or not ready; Retry-After says when to come back.",
}
_UNROUTED = {
    404: ("not_found", "There is nothing at this address; /v1/openapi.json says what there is."),
    405: ("method_not_allowed", "This address does not take this method."),
}
_WRONG = {  # pydantic's word for a fault -> ours
    "too_long": "give at most {max_length}",
    "string_too_long": "give at most {max_length} characters",
    "greater_than_equal": "give {ge} or more",
    "less_than_equal": "give {le} or less",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number, not a file",
    "int_parsing_size": "the number is too large",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false, not a file",
    "literal_error": "give {expected}",
    "string_type": "give text, not a file",
}
Side = Annotated[int, Query(ge=1, le=SIDES[-1], description="Least side of the square, px: 128, 256 or 512 is given.")]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Categories = Annotated[list[_Name], Form(max_length=64, description="Only pictures of these categories answer.")]
Ids = Annotated[list[_Name], Form(max_length=900, description="Only these pictures answer.")]  # a form has 1,000 fields
K = Annotated[int, Form(ge=1, le=MOST_ANSWERS, description="Answers.")]
Rerank = Annotated[
    bool, Form(description="Score candidates with the stored vectors; else as the quantizer ranks them.")
]
Fold = Annotated[bool, Form(description="Of near-duplicates only the best answers, where the index knows them.")]


def build_api(service: "Gateway", *, tokens: bool = False) -> FastAPI:
    """The app of one gateway; with tokens its description says that a call of /v1 needs one, which the guard checks."""
    app = FastAPI(
        title="manet",
        summary="Find a product in a shop's pictures from a customer's photo.",
        version=code()["version"],
        openapi_url="/v1/openapi.json",
        docs_url=None,  # both load scripts from outside
        redoc_url=None,
        redirect_slashes=False,  # to an address that the caller's Host header makes up
        lifespan=service.lifespan,
        responses=_problems(431, 500, 503),
        separate_input_output_schemas=False,
    )
    secured = [Depends(HTTPBearer(auto_error=False))] if tokens else []
    _errors(app)
    _searches(app, service, secured)
    _items(app, service, secured)
    _index(app, service, secured)
    _operations(app, service)
    _page(app)
    return app


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in statuses}


class _Image(APIRoute):
    """The route of a picture: its address ends in /image as it was sent. What an id has of slashes is sent as %2F."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette's question, which itself looks at the decoded path."""
        sent: bytes = scope.get("raw_path") or scope["path"].encode()
        return super().matches(scope) if sent.endswith(b"/image") else (Match.NONE, {})


def _errors(app: FastAPI) -> None:
    def answer(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return answer(Refusal(422, "invalid", f"{where}: {_said(first)}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:  # which is raised again, for the guard to log
        return answer(Refusal(500, "internal", "The service failed; its log says why."))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, Refusal):  # of the guard, at the body's end: FastAPI makes a 400 of it
            return answer(error.__cause__)
        code, said = _UNROUTED.get(error.status_code, ("bad_request", str(error.detail)))
        found = answer(Refusal(error.status_code, code, said))
        found.headers.update(error.headers or {})
        if found.headers.get("Allow") == "GET":
            found.headers["Allow"] = "GET, HEAD"
        return found


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, for people: pydantic's own words speak of its types."""
    if "UploadFile" in error["msg"]:
        return "send a file, as curl -F picture=@photo.jpg does"
    known = _WRONG.get(error["type"])
    return known.format(**error.get("ctx", {})) if known else str(error["msg"])


def _named(name: str) -> str:
    """A field's name as it was sent, or its beginning."""
    return repr(name if len(name) <= _NAMED else f"{name[:_NAMED]}...")


async def _known_fields(request: Request) -> None:
    """Refuse a field that the route does not have, that is empty, or more of one than it takes: a filter that is misspelt or
    holds nothing must not pass for none, and of two pictures none must be lost.

    Raises:
        Refusal: there is one.
    """
    route = request.scope["route"].dependant
    known = {field.alias: get_origin(field.field_info.annotation) is list for field in route.body_params}
    fields = (await request.form()).multi_items()
    given = Counter(name for name, _ in fields)
    unknown = [_named(name) for name in given if name not in known]
    unknown += [f"{_named(name)} (in the address)" for name in request.query_params]
    if unknown:
        raise Refusal(
            422, "unknown_field", f"There is no field {unknown[0]}; the form's are {', '.join(sorted(known))}."
        )
    if empty := [name for name, value in fields if value == ""]:
        raise Refusal(422, "empty_field", f"{empty[0]} is empty; give it a value, or leave it out.")
    for name, count in given.items():
        if count > 1 and not known[name]:
            several = " /v1/search:batch takes several." if name in {"picture", "id"} else ""
            raise Refusal(422, "repeated_field", f"{name} is given {count} times; give it once.{several}")


async def _known_parameters(request: Request) -> None:
    """The same for what stands in an address after the question mark.

    Raises:
        Refusal: there is one that the route does not have.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = Counter(name for name, _ in request.query_params.multi_items())
    if unknown := [name for name in given if name not in known]:
        has = f"this address takes {', '.join(sorted(known))}" if known else "this address takes none"
        raise Refusal(422, "unknown_field", f"There is no parameter {_named(unknown[0])}; {has}.")
    if repeated := [name for name, count in given.items() if count > 1]:
        raise Refusal(422, "repeated_field", f"{repeated[0]} is given {given[repeated[0]]} times; give it once.")


def _searches(app: FastAPI, service: "Gateway", secured: list[Any]) -> None:
    known = [*secured, Depends(_known_fields)]

    @app.post(
        "/v1/search",
        dependencies=known,
        responses=_problems(400, 401, 404, 408, 411, 413, 415, 422, 429, 502),
        operation_id="search",
    )
    async def search(
        picture: Annotated[UploadFile | None, File(description="A picture: JPEG, PNG, WebP, GIF, BMP or TIFF.")] = None,
        id: Annotated[_Name | None, Form(description="Or a picture of the gallery.")] = None,
        url: Annotated[
            str | None, Form(min_length=1, max_length=2048, description="Or an https:// URL, where that is allowed.")
        ] = None,
        k: K = 7,
        category: Categories = [],  # noqa: B006 - FastAPI copies it
        ids: Ids = [],  # noqa: B006
        rerank: Rerank = True,
        fold: Fold = True,
        maps: Annotated[bool, Form(description="Show where the network looked in the query.")] = False,
        explain: Annotated[
            int, Form(ge=0, le=MOST_EXPLAINED, description="For so many answers, which regions matched which.")
        ] = 0,
    ) -> SearchAnswer:
        """The k best pictures of the gallery for one picture: give exactly one of `picture`, `id`, `url`."""
        given = [name for name, value in (("picture", picture), ("id", id), ("url", url)) if value is not None]
        if len(given) != 1:
            raise Refusal(422, "one_query", f"Give one of picture, id, url; here: {', '.join(given) or 'none'}.")
        if url is not None and not service.config.allow_url:
            raise Refusal(422, "no_urls", "This service fetches no URLs; upload the picture.")
        data = None if picture is None else await picture.read()
        wish = serving.Wish(
            k=k, categories=tuple(category), ids=tuple(ids), rerank=rerank, fold=fold, maps=maps, explain=explain
        )
        return await service.search(serving.Query(picture=data, image_id=id, url=url), wish)

    @app.post(
        "/v1/search:batch",
        dependencies=known,
        responses=_problems(400, 401, 408, 411, 413, 415, 422, 429),
        operation_id="searchBatch",
    )
    async def batch(
        picture: Annotated[list[UploadFile], File(description="Pictures.")] = [],  # noqa: B006
        id: Annotated[list[_Name], Form(description="And pictures of the gallery.")] = [],  # noqa: B006
        k: K = 7,
        category: Categories = [],  # noqa: B006
        ids: Ids = [],  # noqa: B006
        rerank: Rerank = True,
        fold: Fold = True,
    ) -> BatchAnswer:
        """As `search`, for several pictures: a picture that cannot be used costs its own answers only, a wrong filter all.

        Items come in the order of the request: first all pictures, then all ids.
        """
        count = len(picture) + len(id)
        if not 1 <= count <= MOST_PICTURES:
            raise Refusal(422, "batch_size", f"Give 1 to {MOST_PICTURES} pictures and ids; here: {count}.")
        wish = serving.Wish(k=k, categories=tuple(category), ids=tuple(ids), rerank=rerank, fold=fold)
        queries = [serving.Query(picture=await each.read()) for each in picture]
        queries += [serving.Query(image_id=each) for each in id]
        return BatchAnswer(items=await service.batch(queries, wish))


def _items(app: FastAPI, service: "Gateway", secured: list[Any]) -> None:
    known = [*secured, Depends(_known_parameters)]
    jpeg: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/jpeg": {}}, "description": "A JPEG square."},
        304: {"description": "If-None-Match names the picture as it is."},
    }
    shared = {"Cross-Origin-Resource-Policy": "cross-origin"} if service.config.cors_origin else {}

    async def image(
        request: Request,
        image_id: str,
        side: Side = 256,
        map: Annotated[
            Literal["none", "saliency", "text"], Query(description="Where the network looked, in colours.")
        ] = "none",
    ) -> Response:
        """A picture of the gallery, resized onto a white square; or with one of its maps over it."""
        side = next(each for each in SIDES if each >= side)
        tag = f'"{service.gallery.current.index.sha256[:16]}-{side}-{map}"'
        headers = {"ETag": tag, "Cache-Control": _KEEP, **shared}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        data = await (service.image(image_id, side) if map == "none" else service.image_map(image_id, side, map))
        return Response(data, media_type="image/jpeg", headers=headers)

    app.router.add_api_route(
        "/v1/items/{image_id:path}/image",
        image,
        dependencies=known,
        response_class=Response,
        responses=jpeg | _problems(401, 404, 413, 415, 422, 429, 502),
        operation_id="itemImage",
        route_class_override=_Image,
    )

    @app.get("/v1/items", dependencies=known, responses=_problems(401, 422), operation_id="items")
    async def items(
        count: Annotated[int, Query(ge=1, le=MOST_ANSWERS, description="Pictures, at most.")] = 16,
        seed: Annotated[int, Query(ge=0, le=2**31, description="Other pictures for another seed.")] = 0,
    ) -> Items:
        """Some pictures of the gallery, drawn evenly."""
        return await service.sample(count, seed)

    @app.get("/v1/items/{image_id:path}", dependencies=known, responses=_problems(401, 404, 422), operation_id="item")
    async def item(image_id: str) -> Item:
        """A picture of the gallery: what the catalogue says of it."""
        return await service.item(image_id)


def _index(app: FastAPI, service: "Gateway", secured: list[Any]) -> None:
    known = [*secured, Depends(_known_parameters)]

    @app.get("/v1/index", dependencies=known, responses=_problems(401, 422, 502), operation_id="index")
    async def index() -> IndexAnswer:
        """The index: size, settings, recall report, categories, rejects; and the limits of requests."""
        return await service.index()

    png: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A plot."}}

    @app.get(
        "/v1/index/recall.png",
        dependencies=known,
        response_class=Response,
        responses=png | _problems(401, 404, 422, 502),
        operation_id="recallPlot",
    )
    async def recall() -> Response:
        """Recall against cost of every setting that was tried when the index was tuned."""
        return Response(await service.recall_plot(), media_type="image/png", headers={"Cache-Control": _KEEP})


def _operations(app: FastAPI, service: "Gateway") -> None:
    @app.get("/healthz", operation_id="health")
    async def health() -> Health:
        """The gateway lives."""
        return Health(status="ok")

    @app.get("/readyz", operation_id="ready")
    async def ready() -> Health:
        """Pictures can be searched with."""
        await service.ready()
        return Health(status="ready")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
