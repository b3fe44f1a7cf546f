"For the API reference: comments beside arguments become the table of parameters, functions with `@patch` methods of their class."
import re

import griffe

OPTIONS = {"warn_unknown_params": False, "warn_missing_types": False}
COMMENT = re.compile(r"\s\s# ?(.+)$")


class Docments(griffe.Extension):
    "Reads what this project writes in place of sections in docstrings: `name: type,  # comment`."

    def on_function_instance(self, *, node, func, **kwargs):
        "Adds a list of the arguments that have a comment at the end of their line, and what is said of the value that comes back."
        lines = func.filepath.read_text(encoding="utf-8").splitlines()
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        said = [(argument.arg, found[1]) for argument in arguments if (found := COMMENT.search(lines[argument.end_lineno - 1]))
                and argument.end_lineno != node.body[0].lineno]
        text = func.docstring.value if func.docstring else ""
        if said: text += "\n\nArgs:\n" + "\n".join(f"    {name}: {comment}" for name, comment in said)
        if node.returns and (found := COMMENT.search(lines[node.returns.end_lineno - 1])): text += f"\n\nReturns:\n    {found[1]}"
        if text: func.docstring = griffe.Docstring(text, parent=func, parser="google", parser_options=OPTIONS)

    def on_class_members(self, *, node, cls, **kwargs):
        "Lists the fields of a class with the comments beside them, in place of a heading for each."
        lines = cls.filepath.read_text(encoding="utf-8").splitlines()
        fields = [(name, field, COMMENT.search(lines[field.lineno - 1])) for name, field in cls.members.items()
                  if not name.startswith("_") and not field.is_alias and field.is_attribute and "property" not in field.labels and field.annotation]
        said = [f"    {name} ({field.annotation}): {comment[1] if comment else field.value or ''}" for name, field, comment in fields]
        for _, field, _ in fields: field.public = False
        text = cls.docstring.value if cls.docstring else ""
        if said: cls.docstring = griffe.Docstring("\n".join([text, "", "Attributes:", *said]), parent=cls, parser="google", parser_options=OPTIONS)

    def on_module_members(self, *, node, mod, **kwargs):
        "Gives patched methods to their classes."
        for name, member in list(mod.members.items()):
            if member.is_alias or not (member.is_function and any(str(decorator.value).startswith("patch") for decorator in member.decorators)): continue
            owner = mod.members.get(str(member.parameters[0].annotation).strip("'\""))
            if owner is not None and owner.is_class:
                mod.del_member(name)
                owner.set_member(name, member)
