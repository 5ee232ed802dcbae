"""Programs up to what doesn't change what they do: names of variables, annotations, docstrings, comments, layout."""

import ast

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def normal_program(source: str) -> str | None:
    """A text that two programs share if they differ in nothing but the above; None if ``source`` isn't Python.

    Names are replaced scope by scope, in the order in which they first stand there; attributes, methods, keywords and
    names that the program doesn't bind (builtins) keep theirs. Imports for annotations are left out.
    """
    try:
        return ast.dump(normal_tree(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def normal_tree(source: str) -> ast.Module:
    """The program behind :func:`normal_program`. Raises SyntaxError, ValueError and what else :mod:`ast` may."""
    tree = _Strip().visit(ast.parse(source))
    _Rename().visit(tree)
    return tree


class _Strip(ast.NodeTransformer):
    """Takes out docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in ("typing", "__future__") else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def _body(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if not node.body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]
        return node


class _Rename(ast.NodeVisitor):
    """Renames what each scope binds; ``v<depth>_<number>``."""

    def __init__(self) -> None:
        self._scopes: list[dict[str, str]] = []
        self._of_classes: set[int] = set()
        """Depths of the scopes that are class bodies: functions in them don't see their names."""

    def visit_Module(self, node: ast.Module) -> None:
        self._in_scope(_bound(node), node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for outside in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(outside)
        node.name = self._new(node.name)
        self._in_scope(_bound(node), [*_arguments(node.args), *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for outside in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(outside)
        self._in_scope(_bound(node), [*_arguments(node.args), node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(outside)
        node.name = self._new(node.name)
        # What a class binds are attributes, which others reach by name: it renames nothing.
        depth = len(self._scopes)
        self._of_classes.add(depth)
        self._in_scope(set(), node.body, keeps=_bound(node))
        self._of_classes.discard(depth)

    def _comprehension(self, node: ast.AST) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        inside = [first.target, *first.ifs, *others]
        inside += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._in_scope({name for generator in node.generators for name in _stored(generator.target)}, inside)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Name(self, node: ast.Name) -> None:
        node.id = self._new(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        node.arg = self._new(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        # "import os.path" binds os, and its text has to stay.
        if "." not in node.name or node.asname:
            node.asname = self._new(node.asname or node.name)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            node.name = self._new(node.name)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        node.names = sorted(map(self._new, node.names))

    visit_Nonlocal = visit_Global

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name:
            node.name = self._new(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            node.name = self._new(node.name)

    def _in_scope(self, names: set[str], nodes: list[ast.AST], keeps: set[str] = frozenset()) -> None:
        self._scopes.append(dict.fromkeys(names, "") | {name: name for name in keeps})
        for node in nodes:
            self.visit(node)
        self._scopes.pop()

    def _new(self, name: str) -> str:
        innermost = len(self._scopes) - 1
        for depth in range(innermost, -1, -1):
            scope = self._scopes[depth]
            if name in scope and (depth == innermost or depth not in self._of_classes):
                scope[name] = scope[name] or f"v{depth}_{sum(map(bool, scope.values()))}"
                return scope[name]
        return name


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    some = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return some + [argument for argument in (arguments.vararg, arguments.kwarg) if argument]


def _bound(scope: ast.AST) -> set[str]:
    """Names that ``scope`` binds, without those of the scopes in it and without its globals and nonlocals."""
    bound: set[str] = set()
    elsewhere: set[str] = set()
    if hasattr(scope, "args"):
        bound |= {argument.arg for argument in _arguments(scope.args)}
    waiting = list(scope.body) if isinstance(scope.body, list) else [scope.body]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                elsewhere |= set(names)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.split(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
        if isinstance(node, _SCOPES):
            bound |= {node.name} if hasattr(node, "name") else set()
        elif isinstance(node, _COMPREHENSIONS):
            # Only a walrus gets out of a comprehension.
            bound |= {walrus.target.id for walrus in ast.walk(node) if isinstance(walrus, ast.NamedExpr)}
        else:
            waiting += ast.iter_child_nodes(node)
    return bound - elsewhere


def _stored(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
