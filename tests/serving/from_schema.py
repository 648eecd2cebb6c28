"""Values that a JSON schema describes, as our own OpenAPI spells them; and, here and there, something else."""

from hypothesis import strategies as st

SCALARS = {"boolean": st.booleans(), "null": st.none()}
FEW = 3
"""Items of a list, and optional keys that are often left out, so that some requests are small enough to be answered."""


class FromSchema:
    """Strategies from schemas of one document."""

    def __init__(self, document, known, wild):
        """
        Args:
            document: an OpenAPI description.
            known: strategies for keys whose schema says less than a server knows, such as names of models.
            wild: what stands in some places instead of what belongs there.
        """
        self.schemas, self.known, self.wild = document["components"]["schemas"], known, wild
        self.made = {}

    def of(self, schema):
        """Values of a schema, now and then wild ones."""
        return st.integers(0, 60).flatmap(lambda number: self.wild if number == 0 else self.valid(schema))

    def valid(self, schema):
        """The same strategy each time for the same schema: making one costs more than drawing from it."""
        if id(schema) not in self.made:
            self.made[id(schema)] = schema, self.make(schema)
        return self.made[id(schema)][1]

    def make(self, schema):
        if "$ref" in schema:
            return self.of(self.schemas[schema["$ref"].removeprefix("#/components/schemas/")])
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return st.one_of(*[self.of(one) for one in choices])
        if "const" in schema or "enum" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        return getattr(self, schema.get("type", "any"), lambda _: SCALARS[schema["type"]])(schema)

    def any(self, _):
        return self.wild

    def string(self, schema):
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 30), 30))

    def integer(self, schema):
        low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum", 1) - 1)
        return st.integers(low, min(high, 4)) | st.integers(low, high)

    def number(self, schema):
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        return st.floats(low, schema.get("maximum"), exclude_min="exclusiveMinimum" in schema, allow_nan=False)

    def array(self, schema):
        high = min(schema.get("maxItems", FEW), FEW)
        return st.lists(self.of(schema["items"]), min_size=schema.get("minItems", 0), max_size=high)

    def object(self, schema):
        if isinstance(more := schema.get("additionalProperties"), dict):
            return st.dictionaries(self.known["names"], self.of(more), max_size=min(schema.get("maxProperties", 2), 2))
        fields = {
            name: self.known[name] if name in self.known else self.of(one)
            for name, one in schema.get("properties", {}).items()
        }
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        some = st.sets(st.sampled_from(sorted(fields)), max_size=FEW) if fields else st.just(set())
        return some.flatmap(lambda names: st.fixed_dictionaries(needed | {name: fields[name] for name in names}))
